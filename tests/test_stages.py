import dataclasses
import json

import jax.numpy as jnp
import pytest
import tiny

from mmcl_jax import default_config, stages
from mmcl_jax.data.targets.labels import DEMOGRAPHICS, DISEASES, PHENOTYPES, Label
from mmcl_jax.train import Schedule

SCHEDULE = Schedule(steps=100, steps_per_epoch=10, batch_size=8, evaluate_every=10, log_every=5)
PARAMS = {"ecg_encoder": {"block_0": {"kernel": jnp.ones((2, 2))}}, "head": {"bias": jnp.ones(2)}}


def config(**fields):
    experiment = default_config.experiment("test")
    experiment.order = ("mdm", "finetune", "report")
    experiment.stages.mdm = default_config.stage("masked_modelling")
    experiment.stages.finetune = default_config.stage(
        "supervised", targets=("CAD", "LV"), seeds=(0, 101), **fields
    )
    experiment.stages.report = {}
    return json.loads(experiment.to_json())


def test_a_stage_with_targets_and_seeds_is_many():
    names = [stage.name for stage in stages.expand(config())]
    assert names == [
        "mdm", "finetune/CAD/0", "finetune/CAD/101", "finetune/LV/0", "finetune/LV/101", "report",
    ]  # fmt: skip
    found = stages.expand(config())[2]
    assert (found.group, found.seed, found.target) == ("finetune", 101, "CAD")


def test_an_order_without_its_stage_is_an_error():
    broken = config()
    broken["order"] = ["mdm", "clip"]
    with pytest.raises(ValueError, match="order names stage 'clip'"):
        stages.expand(broken)


def test_a_field_that_no_stage_has_is_an_error():
    with pytest.raises(ValueError, match="a stage has no field epoch; it has .*epochs"):
        default_config.stage("clip", epoch=3)


def test_kind_of_a_target():
    assert stages.objective_kind(DISEASES[:1]) == "binary"
    assert stages.objective_kind(DISEASES) == "multilabel"
    assert stages.objective_kind(PHENOTYPES) == "regression"
    rhythm = Label("rhythm", "multiclass", "rhythm", classes=("SR", "AF", "VT"))
    assert stages.objective_kind([rhythm]) == "multiclass"
    with pytest.raises(ValueError, match="one multi-class label, found rhythm, rhythm"):
        stages.objective_kind([rhythm, rhythm])
    with pytest.raises(ValueError, match="cannot mix kinds .* age is regression, sex is binary"):
        stages.objective_kind(DEMOGRAPHICS)


def optimizer(**settings):
    fields = {"name": "adamw", "schedule": "cosine", "warmup_epochs": 1, "weight_decay": 0.1}
    stage = stages.expand(config(optimizer=fields | settings))[1]
    made = stages.recipe(stage, *tiny.objective("supervised", label_smoothing=0.1), SCHEDULE)
    return stages.learning_rate(stage, SCHEDULE), made.optimizer(PARAMS, made.hyper)


def test_base_rate_is_scaled_by_the_batch():
    rate, _ = optimizer(base_rate=1e-5)
    assert float(rate(10)) == pytest.approx(1e-5 * 8 / 4)
    rate, _ = optimizer(rate=1e-3)
    assert float(rate(10)) == pytest.approx(1e-3)
    assert float(rate(5)) == pytest.approx(5e-4)


def test_an_objective_learns_the_length_of_its_stage():
    fields = {"name": "adam_l2", "rate": 1e-3, "weight_decay": 0.0}
    stage = stages.expand(config(optimizer=fields))[1]
    assert stages.recipe(stage, *tiny.objective("byol"), SCHEDULE).objective.total_steps == 100


def test_views_of_the_two_halves():
    fields = {"towers": {"ecg_encoder": {}, "ecg_projector": {}}, "objective": "clocs"}
    stage = stages.expand(config())[0]
    towers = {"ecg_encoder": tiny.VIT, "ecg_projector": tiny.PROJECTOR}
    for views, expected in (("halves", (2, True)), (2, (2, False))):
        changed = dataclasses.replace(stage, config={**stage.config, **fields, "views": views})
        made = stages.assemble(changed, towers, ())[1]
        assert (made.count, made.halves) == expected


@pytest.mark.parametrize("settings", [{}, {"rate": 1e-3, "base_rate": 1e-5}])
def test_a_stage_has_one_rate(settings):
    with pytest.raises(ValueError, match="either `rate`, the learning rate, or `base_rate`"):
        optimizer(**settings)


def test_targets_without_seeds_use_the_seed_of_the_run():
    one = config()
    one["stages"]["finetune"]["seeds"] = []
    assert [stage.name for stage in stages.expand(one)][1:3] == ["finetune/CAD/0", "finetune/LV/0"]


def test_seeds_without_targets_are_an_error():
    broken = config()
    broken["stages"]["mdm"]["seeds"] = [1, 2]
    with pytest.raises(ValueError, match=r"stages.mdm has seeds but no targets"):
        stages.expand(broken)


def test_an_unknown_optimizer_setting_is_an_error():
    with pytest.raises(ValueError, match="finetune.optimizer has no field beta1; it has params"):
        optimizer(rate=1e-3, beta1=0.9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "clop"}, "objective is 'clop'; known: barlow_twins, byol, clip, clocs"),
        (
            {"epochs": 3, "optimizer": {"warmup_epochs": 3}},
            "stages.finetune.optimizer.warmup_epochs is 3, .*epochs, which is 3",
        ),
        ({"hand_on": "lates"}, "hand_on is 'lates'; known: latest, best"),
        ({"batch_size": 9}, "batch size 9 does not divide by the 8 devices"),
        ({"init": {"ecg_encoder": "mdn"}}, r"from 'mdn', which is no earlier stage \(mdm"),
    ],
)
def test_settings_are_checked_before_anything_is_trained(fields, message):
    first, second = stages.expand(config())[:2]
    stages.check(second, [first])
    broken = dataclasses.replace(second, config={**second.config, **fields})
    with pytest.raises(ValueError, match=message):
        stages.check(broken, [first])


@pytest.mark.parametrize(
    ("batch_size", "rows", "expected"),
    [(8, 6007, 256), (8, 400, 200), (8, 5, 8), (32, 257, 136), (768, 1000, 504)],
)
def test_a_validation_batch_keeps_an_accelerator_busy(batch_size, rows, expected):
    """8 devices; one of fine-tuning holds 8 to 32 rows."""
    stage = stages.expand(config(batch_size=batch_size))[1]
    objective, _ = tiny.objective("supervised")
    assert stages.evaluation_batch_size(stage, objective, tiny.batch(2), rows) == expected
    contrastive, _ = tiny.objective("clip")
    assert stages.evaluation_batch_size(stage, contrastive, tiny.batch(2), rows) == batch_size


@pytest.mark.parametrize(
    ("batch_size", "rows", "expected"), [(8, 6007, 64), (128, 6007, 128), (8, 100, 56), (4, 5, 8)]
)
def test_members_of_a_sweep_validate_many_rows_at_a_time(batch_size, rows, expected):
    assert stages.sweep_evaluation_size(batch_size, rows) == expected

import json

import jax.numpy as jnp
import pytest

from mmcl_jax import default_config, stages
from mmcl_jax.data.labels import DEMOGRAPHICS, DISEASES, PHENOTYPES
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
    with pytest.raises(ValueError, match="cannot mix kinds .* age is regression, sex is binary"):
        stages.objective_kind(DEMOGRAPHICS)


def optimizer(**settings):
    fields = {"name": "adamw", "schedule": "cosine", "warmup_epochs": 1, "weight_decay": 0.1}
    stage = stages.expand(config(optimizer=fields | settings))[1]
    return stages.optimizer(stage, SCHEDULE, PARAMS, depth=1)


def test_base_rate_is_scaled_by_the_batch():
    rate, _ = optimizer(base_rate=1e-5)
    assert float(rate(10)) == pytest.approx(1e-5 * 8 / 4)
    rate, _ = optimizer(rate=1e-3)
    assert float(rate(10)) == pytest.approx(1e-3)
    assert float(rate(5)) == pytest.approx(5e-4)


@pytest.mark.parametrize("settings", [{}, {"rate": 1e-3, "base_rate": 1e-5}])
def test_a_stage_has_one_rate(settings):
    with pytest.raises(ValueError, match="either `rate`, the learning rate, or `base_rate`"):
        optimizer(**settings)

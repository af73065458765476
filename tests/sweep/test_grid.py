"""The points of a grid, what each changes, and which is the best."""

import dataclasses
import json

import pytest
from tiny_experiment import read_config
from tiny_sweep import BATCH, GRID, config_of

from mmcl_jax import stages
from mmcl_jax.data.targets.labels import DISEASES, PHENOTYPES
from mmcl_jax.sweep import grid as sweep_grid


def test_the_grid_of_the_paper_has_648_points():
    config = json.loads(read_config("mmcl", "sweep").to_json())
    finetune = [stage for stage in stages.expand(config) if stage.target == "CAD"]
    assert [stage.seed for stage in finetune] == [0, 101, 202, 303, 404]
    sweep_grid.check(finetune[0])
    grid = finetune[0].config["sweep"]["grid"]
    assert grid == {
        "batch_size": [8, 16, 32], "layer_decay": [0.5, 0.75], "drop_path": [0.0, 0.1, 0.2],
        "label_smoothing": [0.0, 0.1, 0.2], "weight_decay": [0.0, 0.1, 0.2],
        "base_rate": [1e-6, 3e-6, 1e-5, 3e-5],
    }  # fmt: skip
    points = sweep_grid.points(grid, DISEASES[:1])
    assert len(points) == len({tuple(point.items()) for point in points}) == 648
    # Without classes there is nothing to smooth.
    assert len(sweep_grid.points(grid, PHENOTYPES)) == 216
    small = json.loads(read_config("mmcl", "demo,sweep").to_json())["stages"]["finetune"]["sweep"]
    assert len(sweep_grid.points(small["grid"])) == 4


def test_a_point_changes_what_its_axes_say():
    stage = stages.expand(config_of(grid=GRID))[0]
    point = {
        "batch_size": 16, "layer_decay": 0.75, "drop_path": 0, "label_smoothing": 0.2,
        "weight_decay": 0.3, "rate": 1e-3,
    }  # fmt: skip
    member = sweep_grid.at_point(stage, point, 7)
    assert (member.name, member.seed) == ("finetune/CAD/7", 7)
    config = member.config
    assert config["batch_size"] == 16
    assert config["settings"]["label_smoothing"] == 0.2
    assert config["towers"]["ecg_encoder"] == {"drop_path": 0.0}
    assert {"rate": 1e-3, "weight_decay": 0.3, "layer_decay": 0.75}.items() <= (
        config["optimizer"].items()
    )
    assert "base_rate" not in config["optimizer"]
    assert stage.config["batch_size"] == BATCH


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweep": {"grid": {"decay": (1,)}}}, "has no axis decay; known: batch_size, layer_decay"),
        ({"sweep": {"gird": {}}}, "sweep has no field gird; it has grid, seeds, members"),
        ({"sweep": {"seeds": (1,)}}, "grid has no axis; known"),
        ({"sweep": {"grid": {"rate": (1,), "base_rate": (1,)}}}, "a member has one learning rate"),
        ({"sweep": {"grid": {"rate": 1e-3}}}, "grid.rate is 0.001, expected a list of numbers"),
        ({"sweep": {"grid": {"batch_size": (0.5,)}}}, "expected whole numbers from 1"),
        ({"sweep": {"grid": {"rate": (1, 1)}}}, "lists a value twice"),
        ({"sweep": {"grid": {"rate": (1,)}}, "hand_on": "latest"}, "keeps the best parameters"),
        ({"sweep": {"grid": {"batch_size": (3,)}}, "accumulate": 2}, "do not divide by accumulate"),
    ],
)
def test_a_grid_is_checked_before_anything_is_trained(changes, message):
    stage = stages.expand(config_of())[0]
    with pytest.raises(ValueError, match=message):
        stages.check(dataclasses.replace(stage, config={**stage.config, **changes}), [])


def test_the_best_point_has_the_best_mean_and_no_diverged_member():
    values = {0: [0.7, 0.8], 1: [0.9, None], 2: [0.85, 0.65], 3: [0.75, 0.75]}
    assert sweep_grid.choose(values, 1) == 0
    assert sweep_grid.choose({0: [0.5], 1: [0.3]}, -1) == 1
    with pytest.raises(ValueError, match="each of the 2 points .* lower the learning rates"):
        sweep_grid.choose({0: [None], 1: [float("nan")]}, 1)

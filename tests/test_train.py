import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mmcl_jax import train
from mmcl_jax.checkpoints import Checkpoints, load
from mmcl_jax.recipe import Recipe
from mmcl_jax.run_dir import RunDir
from mmcl_jax.state import State, initialise

STEPS, BATCH = 6, 8


@pytest.fixture(scope="module")
def task():
    """A tiny supervised stage, built once; the compiled step differs in the rate only."""
    objective, views = tiny.objective("supervised")
    params, extra = initialise(objective, views, tiny.batch(2), jax.random.key(0))
    return objective, views, jax.device_get(params), extra


def run(task, folder, *, batches=None, steps=STEPS, evaluations=None, **changes):
    """Trains `task` in `folder` and returns the summary."""
    objective, views, params, extra = task
    recipe = Recipe(
        objective, views, lambda params, hyper: optax.sgd(hyper["rate"]), {"rate": 1e-2}
    )
    params = jax.tree.map(jnp.asarray, params)
    state = State(jnp.zeros((), jnp.int32), params, extra, optax.sgd(1e-2).init(params))

    def from_step(start):
        return (tiny.batch(BATCH, seed) for seed in range(start, 10**6))

    def validation():
        if evaluations is not None:
            evaluations.append(1)
        yield tiny.batch(BATCH, 99)
        last = tiny.batch(BATCH, 98)
        last["valid"][3:] = 0
        yield last

    schedule = {
        "steps": steps, "steps_per_epoch": 2, "batch_size": BATCH, "evaluate_every": 2,
        "log_every": 1, "select": "val/loss",
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    with Checkpoints(folder / "stages" / "stage") as checkpoints:
        return train.train(
            RunDir(folder), "stage", recipe, state, checkpoints, learning_rate=lambda step: 1e-2,
            schedule=train.Schedule(**{**schedule, **changes}),
            train_batches=batches or from_step, eval_batches=validation, seed=3,
        )  # fmt: skip


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def parameters(folder):
    return load(folder / "stages" / "stage", "latest")[0]


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(task, folder)


def test_whole_run(whole):
    folder, summary = whole
    assert summary["steps"] == STEPS
    assert summary["metrics"].keys() == {"val/loss", "val/auroc"}
    steps = [line["step"] for line in lines(folder) if "train/loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert summary["best"] == min(line["val/loss"] for line in lines(folder) if "val/loss" in line)


def test_interrupted_run_saves_and_continues_bit_for_bit(task, whole, tmp_path):
    fetched = []

    def interrupting(start):
        for seed in range(start, 10**6):
            if seed == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            fetched.append(seed)
            yield tiny.batch(BATCH, seed)

    with pytest.raises(train.Interrupted, match="SIGTERM and saved at step 4 of 6"):
        run(task, tmp_path, batches=interrupting)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run(task, tmp_path, batches=interrupting)["steps"] == STEPS
    # Those fetched ahead are neither lost nor repeated.
    assert fetched == list(range(STEPS))
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path), parameters(whole[0]))
    assert [line["step"] for line in lines(tmp_path)] == [line["step"] for line in lines(whole[0])]


def test_finished_run_trains_no_further(task, whole):
    folder, summary = whole
    before = parameters(folder)
    assert run(task, folder) == summary
    jax.tree.map(np.testing.assert_array_equal, parameters(folder), before)


def test_non_finite_loss_names_stage_and_step(task, tmp_path):
    def poisoned(start):
        for seed in range(start, 10**6):
            rows = tiny.batch(BATCH, seed)
            if seed == 2:
                rows["ecg"][0, 0, :] = np.nan
            yield rows

    with pytest.raises(train.NonFiniteLoss, match="stage stage, step 3: loss is nan"):
        run(task, tmp_path, batches=poisoned, log_every=2)
    # The step before was saved, the bad one was not.
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parameters(tmp_path)))


def test_unknown_selection_metric_is_an_error(task, tmp_path):
    with pytest.raises(ValueError, match="selects by val/r, .* it gives val/auroc, val/loss"):
        run(task, tmp_path, select="val/r")


def test_batch_must_divide_by_the_devices(task, tmp_path):
    with pytest.raises(ValueError, match="batch size 9 does not divide by the 8 devices"):
        run(task, tmp_path, batch_size=9)


def test_early_stopping_waits_for_patience_within_a_band():
    stopping = train.EarlyStopping(sign=1, patience=2, band=0.01)
    values = [0.70, 0.75, 0.745, 0.73, 0.72, 0.71]
    improved = []
    for step, value in enumerate(values):
        assert not stopping.stop
        improved.append(stopping.update(step, value))
    assert improved == [True, True, False, False, False, False]
    # 0.745 is within the band of 0.75 and resets; then three evaluations outside exceed 2.
    assert stopping.stop
    assert (stopping.best, stopping.best_step) == (0.75, 1)


def test_early_stopping_on_a_loss_looks_for_the_lowest():
    stopping = train.EarlyStopping(sign=-1, patience=0, band=0.0)
    assert stopping.update(1, 2.0)
    assert stopping.update(2, 1.5)
    assert not stopping.update(3, 1.6)
    assert stopping.stop


def test_early_stop_ends_the_stage(task, tmp_path):
    evaluations = []
    # AUROC of 11 records and a tiny rate: no evaluation beats the first, none is within -1.
    summary = run(
        task, tmp_path, steps=40, select="val/auroc", patience=1, band=-1.0, evaluations=evaluations
    )
    assert summary["stopped_early"]
    assert summary["steps"] == 2 * len(evaluations) == 6

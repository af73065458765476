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
from mmcl_jax.early_stopping import find_best
from mmcl_jax.recipe import Recipe
from mmcl_jax.run_dir import RunDir
from mmcl_jax.sharding import make_mesh
from mmcl_jax.state import State, initialise
from mmcl_jax.step_folder import DamagedCheckpoint

STEPS, BATCH = 6, 8


@pytest.fixture(scope="module")
def task():
    """A tiny supervised stage, built once; the compiled step differs in the rate only."""
    objective, views = tiny.objective("supervised")
    params, extra = initialise(objective, views, tiny.batch(2), jax.random.key(0))
    return objective, views, jax.device_get(params), extra


def run(
    task, folder, *, batches=None, validation=None, steps=STEPS, evaluations=None, describe=None,
    **changes,
):  # fmt: skip
    """Trains `task` in `folder` and returns the summary."""
    objective, views, params, extra = task
    recipe = Recipe(
        objective, views, lambda params, hyper: optax.sgd(hyper["rate"]), {"rate": 1e-2}
    )
    params = jax.tree.map(jnp.asarray, params)
    state = State(jnp.zeros((), jnp.int32), params, extra, optax.sgd(1e-2).init(params))

    def from_step(start):
        return (tiny.batch(BATCH, seed) for seed in range(start, 10**6))

    def clean_validation():
        if evaluations is not None:
            evaluations.append(1)
        yield tiny.batch(BATCH, 99)
        last = tiny.batch(BATCH, 98)
        last["valid"][3:], last["index"][3:] = 0, -1
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
            train_batches=batches or from_step, seed=3,
            eval_batches=validation or clean_validation, describe=describe,
        )  # fmt: skip


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(folder):
    """Lines without their time."""
    return [{k: v for k, v in line.items() if k != "time"} for line in lines(folder)]


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


def test_a_signal_at_the_very_end_is_not_lost(task, whole, tmp_path):
    """It came with the last validation batch: the next stage must not begin."""
    asked = []

    def interrupting():
        asked.append(1)
        yield tiny.batch(BATCH, 99)
        last = tiny.batch(BATCH, 98)
        last["valid"][3:], last["index"][3:] = 0, -1
        yield last
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(train.Interrupted, match="SIGTERM and saved at step 6 of 6"):
        run(task, tmp_path, validation=interrupting)
    assert run(task, tmp_path, validation=interrupting) == whole[1]
    assert len(asked) == 3
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path), parameters(whole[0]))


def test_a_signal_during_an_evaluation_is_not_kept_waiting(task, whole, tmp_path):
    asked = []

    def interrupting():
        asked.append(1)
        yield tiny.batch(BATCH, 99)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        last = tiny.batch(BATCH, 98)
        last["valid"][3:], last["index"][3:] = 0, -1
        yield last

    with pytest.raises(train.Interrupted, match="SIGTERM and saved at step 4 of 6"):
        run(task, tmp_path, validation=interrupting)
    assert run(task, tmp_path, validation=interrupting) == whole[1]
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path), parameters(whole[0]))
    # The evaluation that was broken off is made, once.
    assert logged(tmp_path) == logged(whole[0])


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(task, whole, tmp_path):
    run(task, tmp_path, steps=4)
    latest = tmp_path / "stages" / "stage" / "checkpoints" / "latest"
    (latest / "4" / "params" / "_METADATA").write_text("{}")
    assert run(task, tmp_path) == whole[1]
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path), parameters(whole[0]))
    assert logged(tmp_path) == logged(whole[0])


def poisoned(start):
    for seed in range(start, 10**6):
        rows = tiny.batch(BATCH, seed)
        if seed == 2:
            rows["ecg"][5, 0, :] = np.nan
        yield rows


def test_non_finite_loss_names_step_and_records(task, tmp_path):
    def describe(split, rows):
        assert split == "train"
        return [
            {"record": f"r{row}", "subject": f"s{row}", "not_finite": ["ecg"] * (row == 5)}
            for row in rows.tolist()
        ]

    message = r"stage stage, step 3: loss is nan. Not finite in the cohort: r5 \(ecg\). .* are in "
    with pytest.raises(train.NonFiniteLoss, match=message):
        run(task, tmp_path, batches=poisoned, log_every=2, describe=describe)
    # The step before was saved, the bad one was not.
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parameters(tmp_path)))
    found = json.loads((tmp_path / "non_finite_batch.json").read_text())
    assert (found["stage"], found["step"], found["loss"]) == ("stage", 3, "nan")
    assert [entry["subject"] for entry in found["records"]] == [f"s{n}" for n in range(BATCH)]


def test_a_loss_that_diverges_from_whole_records_says_so(task, tmp_path):
    with pytest.raises(train.NonFiniteLoss, match="step 3: .* numbers only: lower the learning ra"):
        run(task, tmp_path, batches=poisoned)


def test_a_validation_that_is_no_number_names_the_records(task, tmp_path):
    def bad_validation():
        rows = tiny.batch(BATCH, 99)
        rows["ecg"][2, 0, :] = np.inf
        yield rows

    def describe(split, rows):
        assert split == "val"
        return [{"record": f"r{row}", "not_finite": ["ecg"] * (row == 2)} for row in rows.tolist()]

    with pytest.raises(train.NonFiniteLoss, match=r"step 2: the outputs of 1 rec.* r2 \(ecg\)"):
        run(task, tmp_path, validation=bad_validation, describe=describe)
    assert len(json.loads((tmp_path / "non_finite_batch.json").read_text())["records"]) == 1


def test_records_left_out_are_counted(task, tmp_path):
    def lacking_one():
        rows = tiny.batch(BATCH, 99)
        # One record is damaged, the last two rows are padding.
        rows["valid"][[1, 6, 7]], rows["index"][6:] = 0, -1
        yield rows

    def lacking(start):
        for seed in range(start, 10**6):
            rows = tiny.batch(BATCH, seed)
            rows["valid"][:2] = 0
            yield rows

    run(task, tmp_path, batches=lacking, validation=lacking_one, steps=2, log_every=2)
    training, validation = lines(tmp_path)
    assert training["train/records_left_out"] == 4
    assert validation["val/records_left_out"] == 1


def test_a_run_goes_on_with_another_number_of_devices(task, whole, tmp_path, monkeypatch):
    run(task, tmp_path, steps=2)
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    fetched = []

    def noting(start):
        for seed in range(start, 10**6):
            fetched.append(seed)
            yield tiny.batch(BATCH, seed)

    run(task, tmp_path, batches=noting)
    assert fetched == [2, 3, 4, 5]
    for ours, theirs in zip(lines(tmp_path), lines(whole[0]), strict=True):
        for name in ("train/loss", "val/loss"):
            if name in theirs:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path) as found:
        yield found


def bad(checkpoints, step):
    (checkpoints.folder / "best" / str(step) / "manifest.json").write_text("{}")


def state_at(step):
    return State(jnp.asarray(step), {"head": {"bias": jnp.full(2, float(step))}}, {}, {})


def test_damaged_best_parameters_are_those_of_the_state(checkpoints):
    checkpoints.save_best(state_at(4), 0.5)
    bad(checkpoints, 4)
    find_best(checkpoints, state_at(4), train.EarlyStopping(1, -1, 0.0, best=0.5, best_step=4))
    assert load(checkpoints.folder.parent, "best")[2] == 4


def test_the_best_before_damaged_ones_takes_their_place(checkpoints, capsys):
    for step in (2, 4):
        checkpoints.save_best(state_at(step), step / 10)
    bad(checkpoints, 4)
    stopping = train.EarlyStopping(1, -1, 0.0, best=0.4, best_step=4)
    find_best(checkpoints, state_at(6), stopping)
    assert (stopping.best, stopping.best_step) == (0.2, 2)
    assert "best parameters are now those of step 2, not 4" in capsys.readouterr().err


def test_no_best_parameters_left_is_an_error(checkpoints):
    checkpoints.save_best(state_at(4), 0.5)
    bad(checkpoints, 4)
    stopping = train.EarlyStopping(1, -1, 0.0, best=0.5, best_step=4)
    with pytest.raises(DamagedCheckpoint, match="no checkpoint is whole"):
        find_best(checkpoints, state_at(6), stopping)


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

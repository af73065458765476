"""Members side by side give what each gives alone; the search picks, resumes and hands on."""

import csv
import dataclasses
import json
import os
import signal

import jax
import numpy as np
import optax
import pytest
from tiny_experiment import start
from tiny_source import TinySource
from tiny_sweep import BATCH, GRID, config_of

from mmcl_jax import stages
from mmcl_jax.checkpoints import load
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.order import EpochOrder
from mmcl_jax.experiment import Experiment
from mmcl_jax.run_dir import RunDir
from mmcl_jax.sharding import make_mesh
from mmcl_jax.state import State, make_train_step
from mmcl_jax.sweep import grid as sweep_grid
from mmcl_jax.sweep import loop as sweep_loop
from mmcl_jax.sweep import search, underway
from mmcl_jax.sweep.data import SweepData
from mmcl_jax.sweep.program import Program
from mmcl_jax.train import Interrupted

STEPS = 20
# Settings that a member alone would not even compile where they are 0, and rates that are too low
# to get anywhere: those members stop early.
MEMBERS = (
    ({"rate": 3e-6, "layer_decay": 0.5, "drop_path": 0.0, "label_smoothing": 0.0}, 0),
    ({"rate": 3e-4, "layer_decay": 0.75, "drop_path": 0.2, "label_smoothing": 0.1}, 101),
    ({"rate": 5e-4, "layer_decay": 0.5, "drop_path": 0.4, "weight_decay": 0.2}, 0),
    ({"rate": 3e-6, "layer_decay": 0.75, "drop_path": 0.0, "weight_decay": 0.0}, 101),
)


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "cohort"
    draws = np.random.default_rng(0).integers(0, 2, 60)
    changes = []
    for record, positive in enumerate(draws):
        changes.append((record, "labels", {"CAD": float(positive), "LVEF": 50.0 + record}))
        # Something to learn: positives have louder recordings.
        ecg = np.random.default_rng(record).standard_normal((12, 5000), np.float32)
        changes.append((record, "ecg", ecg * np.float32(1 + positive)))
    source = TinySource(count=60, without_cmr=tuple(range(60)), changes=tuple(changes))
    cohorts.write(source, folder, workers=0, progress=False)
    return folder


@pytest.fixture(scope="module")
def parts(cohort_folder, tmp_path_factory):
    """What members are made of: experiment, stage, data."""
    config = config_of(cohort_folder)
    experiment = Experiment(config, RunDir(tmp_path_factory.mktemp("parts")))
    stage = experiment.stages[0]
    _, _, labels = stages.build(stage, config["models"], experiment.cohort)
    return experiment, stage, SweepData(experiment.cohort, stage, labels), labels


def alone(parts, point, seed):
    """The recipe of a member, its fresh parameters, and the order of its batches."""
    experiment, stage, data, labels = parts
    stage = sweep_grid.at_point(stage, point, seed)
    objective, views, _ = stages.build(stage, experiment.config["models"], experiment.cohort)
    views = dataclasses.replace(views, mesh=None)
    schedule = stages.schedule(stage, experiment.cohort, data.rows, labels)
    recipe = stages.recipe(stage, objective, views, schedule)
    initial = jax.device_get(experiment.initial(stage, objective, views, data.example()))
    order = EpochOrder(data.rows, data.subjects, BATCH, seed, slice(0, BATCH))
    return recipe, initial, order, schedule


def side_by_side(
    parts, folder, *, size, devices=1, members=MEMBERS, finished=None, stop_after=None, die_in=None
):
    """Trains `members` in slots; their results in order, and the number of slots by period.

    Args:
        folder: of those under way.
        finished: results of members that need not be trained.
        stop_after: periods until a signal.
        die_in: period that ends with an error before anything is saved.
    """

    def progress(running, taken):
        if len(sizes) == die_in:
            raise ZeroDivisionError

    data = parts[2]
    seeds = sorted({seed for _, seed in members})
    built = [alone(parts, point, seed) for point, seed in members]
    recipe, _, _, schedule = built[0]
    initial = {seed: built[number][1] for number, (_, seed) in enumerate(members)}
    rows = data.parts(BATCH)
    mesh = make_mesh(jax.devices()[:devices])
    program = Program(
        recipe, [initial[seed] for seed in seeds], mesh, *data.load(parts[0].recordings), rows
    )
    sizes, results = [], dict(finished or {})
    train = program.train

    def counted(slots, keys, *rest):
        sizes.append(len(keys))
        return train(slots, keys, *rest)

    program.train = counted
    entries = [
        sweep_loop.Member(
            name=f"member {number}",
            hyper={"label_smoothing": 0.0, "drop_path": 0.0, **recipe.hyper},
            seed=members[number][1],
            initial=seeds.index(members[number][1]),
            order=order,
        )
        for number, (recipe, _, order, _) in enumerate(built)
    ]
    with underway.Underway(folder) as saved:
        sweep_loop.train_members(
            program,
            [entry for entry in entries if entry.name not in results],
            schedule,
            sweep_loop.Validation(
                recipe.objective, data.validation_labels(), (rows >= 0).sum(axis=1)
            ),
            size=size,
            devices=devices,
            finished=lambda result: results.update({result.member.name: result}),
            progress=progress,
            interrupted=lambda: Interrupted("", 15) if len(sizes) == stop_after else None,
            underway=saved,
            with_parameters=True,
        )
    return [results[entry.name] for entry in entries], sizes


def relative(one, other):
    difference = optax.tree.norm(jax.tree.map(np.subtract, one, other))
    return float(difference / optax.tree.norm(other))


@pytest.fixture(scope="module")
def together(parts, tmp_path_factory):
    return side_by_side(parts, tmp_path_factory.mktemp("together") / "underway", size=4)


@pytest.mark.slow
def test_a_member_equals_the_same_run_alone(parts, together):
    step = None
    recordings, _ = parts[2].load(parts[0].recordings)
    for (point, seed), result in zip(MEMBERS, together[0], strict=True):
        recipe, (params, extra), order, _ = alone(parts, point, seed)
        hyper = {name: np.float32(value) for name, value in recipe.hyper.items()}
        if point.get("label_smoothing") == 0:
            # The run alone drops nothing and smoothes nothing, and does not know the two numbers.
            assert not hyper.keys() & {"drop_path", "label_smoothing"}
            take = make_train_step(recipe)
        else:
            hyper = {"drop_path": np.float32(0), **hyper}
            take = step = step or make_train_step(recipe)
        optimizer_state = recipe.optimizer(params, recipe.hyper).init(params)
        state = State(np.zeros((), np.int32), params, extra, optimizer_state)
        for number in range(result.best_step):
            batch = {"index": order[number].astype(np.int32)}
            state, _ = take(state, batch, jax.random.key(seed), hyper, recordings)
        assert relative(result.parameters[0], state.params) < 1e-5
        assert relative(params, state.params) > 10 * point["rate"] / 5


def test_members_that_stop_are_frozen_and_compacted(together):
    results, sizes = together
    assert [result.steps for result in results] == [10, 20, 20, 10]
    assert results[0].stopped_early
    assert results[3].stopped_early
    assert sizes == [4, 4, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "devices", "sizes"), [(2, 1, [2] * 6), (8, 8, [8] * 4)])
def test_neither_slots_nor_devices_change_a_result(parts, together, tmp_path, size, devices, sizes):
    # In two slots, the first that stops makes room for the third member.
    results, found = side_by_side(parts, tmp_path, size=size, devices=devices)
    assert found == sizes
    assert_close(results, together[0])


def assert_close(results, others):
    for one, other in zip(results, others, strict=True):
        for field in ("steps", "best_step", "stopped_early", "diverged"):
            assert getattr(one, field) == getattr(other, field)
        assert one.best == pytest.approx(other.best, rel=1e-5)
        assert relative(one.parameters[0], other.parameters[0]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("end", ["signal", "death"])
def test_members_under_way_continue_bit_for_bit(parts, together, tmp_path, monkeypatch, end):
    whole = {result.member.name: result for result in together[0]}
    # Both end in the second period, in which two members finish. The death comes before the slots
    # are saved, so it is the state of the first one that continues, without the two.
    if end == "signal":
        periods = 2
        with pytest.raises(Interrupted):
            side_by_side(parts, tmp_path, size=4, stop_after=2)
    else:
        periods = 1
        monkeypatch.setattr(underway, "PAUSE", 0.0)
        with pytest.raises(ZeroDivisionError):
            side_by_side(parts, tmp_path, size=4, die_in=2)
    finished = {name: whole[name] for name in ("member 0", "member 3")}
    results, sizes = side_by_side(parts, tmp_path, size=4, finished=finished)
    assert sizes == together[1][periods:]
    assert not tmp_path.exists()
    for one, other in zip(results, together[0], strict=True):
        assert (one.best, one.history, one.metrics) == (other.best, other.history, other.metrics)
        jax.tree.map(np.testing.assert_array_equal, one.parameters, other.parameters)


@pytest.mark.slow
def test_members_under_way_continue_on_more_devices_and_in_more_slots(parts, together, tmp_path):
    with pytest.raises(Interrupted):
        side_by_side(parts, tmp_path, size=2, stop_after=1)
    # The two that had waited have room now.
    results, sizes = side_by_side(parts, tmp_path, size=4, devices=8)
    assert sizes == [8, 8, 8, 8]
    assert_close(results, together[0])


@pytest.mark.slow
def test_a_member_that_diverges_ends_alone(parts, together, tmp_path):
    (good, seed), bad = MEMBERS[0], (MEMBERS[1][0] | {"rate": 1e30}, 0)
    results, sizes = side_by_side(parts, tmp_path, size=2, members=(bad, (good, seed), bad))
    assert sizes == [2, 2]
    for number in (0, 2):
        assert results[number].diverged
        assert results[number].best is None
        assert 1 < results[number].steps <= 5
    assert not results[1].diverged
    assert relative(results[1].parameters[0], together[0][0].parameters[0]) < 1e-5


@pytest.mark.slow
def test_more_members_under_way_than_may_train_now(parts, together, tmp_path):
    members = (*MEMBERS, MEMBERS[0], MEMBERS[3])
    with pytest.raises(Interrupted):
        side_by_side(parts, tmp_path, size=4, members=members, stop_after=1)
    results, sizes = side_by_side(parts, tmp_path, size=1, members=members)
    assert sizes == [4, 2, 2, 1, 1, 1, 1]
    assert_close(results, [*together[0], together[0][0], together[0][3]])


# --- a whole sweep ---------------------------------------------------------------------------


def table(folder):
    with (folder / "sweep" / "finetune" / "CAD" / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def swept(cohort_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    config = config_of(cohort_folder, GRID, patience=-1)
    assert start(config, folder).run_all()
    return config, folder


@pytest.mark.slow
def test_a_sweep_trains_every_point_and_then_the_seeds_of_the_best(swept):
    _, folder = swept
    rows = table(folder)
    assert list(rows[0]) == [
        "round", "point", "batch_size", "rate", "seed", "steps", "best_step", "best",
        "stopped_early", "diverged",
    ]  # fmt: skip
    search, chosen = rows[:4], rows[4:]
    found = [(row["round"], row["batch_size"], row["rate"], row["seed"]) for row in search]
    assert found == [
        ("search", size, rate, "0") for size in ("8", "16") for rate in ("3e-06", "0.0005")
    ]
    assert [row["steps"] for row in search] == ["20", "20", "8", "8"]
    best = json.loads((folder / "sweep" / "finetune" / "CAD" / "best.json").read_text())
    assert best["point"] == int(min(search, key=lambda row: float(row["best"]))["point"]) == 1
    assert best["chosen"] == {"batch_size": 8, "rate": 5e-4}
    assert [(row["round"], row["point"], row["seed"]) for row in chosen] == [
        ("chosen", "1", "0"), ("chosen", "1", "101"),
    ]  # fmt: skip
    values = [float(row["best"]) for row in chosen]
    assert best["mean"] == pytest.approx(np.mean(values))
    assert best["sd"] == pytest.approx(np.std(values, ddof=1))
    # The seed of the search is trained again, for its parameters.
    assert values[0] == pytest.approx(float(search[1]["best"]), rel=1e-5)


@pytest.mark.slow
def test_the_chosen_members_are_stages_like_others(swept, cohort_folder, tmp_path):
    config, folder = swept
    # The same run alone, on all devices, with the settings that were chosen.
    settings = config["stages"]["finetune"]
    optimizer = {k: v for k, v in settings["optimizer"].items() if k != "base_rate"}
    plain = config_of(
        cohort_folder, patience=-1, optimizer={**optimizer, "rate": 5e-4}, seeds=(101,)
    )
    assert start(plain, tmp_path).run_all(["finetune"])
    name = "stages/finetune/CAD/101"
    swept_done, done = (
        json.loads((run / name / "done.json").read_text()) for run in (folder, tmp_path)
    )
    assert swept_done.pop("chosen") == {"batch_size": 8, "rate": 5e-4}
    assert swept_done.keys() == done.keys()
    for field in ("steps", "best_step", "epochs", "select", "hand_on", "records", "stopped_early"):
        assert swept_done[field] == done[field]
    assert swept_done["best"] == pytest.approx(done["best"], rel=1e-5)
    ours, _, step = load(folder / name, "best")
    theirs, _, _ = load(tmp_path / name, "best")
    assert relative(ours, theirs) < 1e-5
    assert step == done["best_step"]
    predictions = np.load(folder / "evaluate" / "predictions" / "finetune__CAD__101.npz")
    assert np.isfinite(predictions["prediction"]).all()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mine = [line for line in lines if line["stage"] == "finetune/CAD/101"]
    assert [line["step"] for line in mine] == [5, 10, 15, 20]
    assert {"train/loss", "train/learning_rate", "val/loss", "val/auroc"} <= mine[0].keys()


@pytest.mark.slow
def test_a_sweep_that_was_interrupted_goes_on(swept, tmp_path, monkeypatch):
    config, folder = swept
    add = search.Results.add

    def stopping(results, task, record):
        add(results, task, record)
        if task.point == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopping_at_once(meter, running, taken):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(search.Meter, "update", stopping_at_once)
        with pytest.raises(Interrupted, match="0 of 4 members have finished; any under way"):
            start(config, tmp_path).run_all(["finetune"])
    continued = []

    def continuing(saved, member, schedule):
        continued.append((member.name, saved["step"]))
        return go_on(saved, member, schedule)

    go_on = sweep_loop._continued
    with monkeypatch.context() as patched:
        patched.setattr(search.Results, "add", stopping)
        patched.setattr(sweep_loop, "_continued", continuing)
        with pytest.raises(Interrupted, match=r"\(search\) stopped by SIGTERM; 2 of 4 members"):
            start(config, tmp_path).run_all(["finetune"])
    assert continued == [(f"finetune/CAD/0 (search, point {point})", 5) for point in (0, 1)]
    assert len(table(tmp_path)) == 2
    # As if it had been killed while it wrote the third.
    with (tmp_path / "sweep" / "finetune" / "CAD" / "results.jsonl").open("a") as file:
        file.write('{"round": "sea')
    # And killed before it had removed the members of the first batch size.
    (tmp_path / "sweep" / "finetune" / "CAD" / "underway-search-8" / "checkpoints").mkdir(
        parents=True
    )
    trained = []

    def counting(results, task, record):
        trained.append(task)
        add(results, task, record)

    monkeypatch.setattr(search.Results, "add", counting)
    # How many train side by side may change on the way.
    config = json.loads(json.dumps(config))
    config["stages"]["finetune"]["sweep"]["members"] = 16
    assert start(config, tmp_path).run_all(["finetune"])
    assert [(task.round, task.point) for task in trained] == [
        ("search", 2), ("search", 3), ("chosen", 1), ("chosen", 1),
    ]  # fmt: skip
    assert list((tmp_path / "sweep" / "finetune" / "CAD").glob("underway*")) == []
    for one, other in zip(table(tmp_path), table(folder), strict=True):
        assert float(one.pop("best")) == pytest.approx(float(other.pop("best")), rel=1e-5)
        assert one == other


def test_a_finished_sweep_is_not_run_again(swept, monkeypatch):
    config, folder = swept
    monkeypatch.setattr(search, "train_members", None)
    assert not start(config, folder).run_all()
    changed = json.loads(json.dumps(config))
    changed["stages"]["finetune"]["sweep"]["grid"]["rate"] = [1e-4]
    with pytest.raises(ValueError, match=r"other settings: stage.sweep.grid.rate: \["):
        start(changed, folder).run_all()


def test_a_sweep_of_other_records_is_refused(tmp_path):
    def begin(**cohort):
        search.Results(tmp_path, [{"rate": 1e-3}], 8).begin({"stage": {}, "data": {}, **cohort})

    begin(cohort="abc")
    begin(cohort="abc")
    with pytest.raises(ValueError, match="cohort: 'abc' then, 'def' now"):
        begin(cohort="def")


def test_another_grid_in_the_same_folder_is_refused(tmp_path):
    results = search.Results(tmp_path, [{"rate": 1e-3}], 8)
    results.begin({"stage": {"sweep": {"grid": {"rate": [1e-3]}}}, "data": {}})
    with pytest.raises(ValueError, match="other settings: stage.sweep.grid.rate"):
        results.begin({"stage": {"sweep": {"grid": {"rate": [1e-4]}}}, "data": {}})

"""Members side by side give what each gives alone, also when they were stopped on the way."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_sweep import BATCH, config_of, relative

from mmcl_jax import stages
from mmcl_jax.data.order import EpochOrder
from mmcl_jax.experiment import Experiment
from mmcl_jax.run_dir import RunDir
from mmcl_jax.sharding import make_mesh
from mmcl_jax.state import State, make_train_step
from mmcl_jax.sweep import grid as sweep_grid
from mmcl_jax.sweep import loop as sweep_loop
from mmcl_jax.sweep import underway
from mmcl_jax.sweep.data import SweepData
from mmcl_jax.sweep.program import Program
from mmcl_jax.sweep.validation import Validation
from mmcl_jax.train import Interrupted

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
    parts,
    folder,
    *,
    size,
    devices=1,
    members=MEMBERS,
    finished=None,
    stop_after=None,
    stop_after_calls=None,
    die_in=None,
):
    """Trains `members` in slots; their results in order, and the number of slots by evaluation.

    Args:
        folder: of those under way.
        finished: results of members that need not be trained.
        stop_after: evaluations until a signal.
        stop_after_calls: calls of the program until a signal.
        die_in: evaluation after which an error comes before anything is saved.
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
    sizes, calls, results = [], [], dict(finished or {})
    train, evaluate = program.train, program.evaluate

    def counted_train(slots, *rest):
        calls.append(rest[-1])
        return train(slots, *rest)

    def counted_evaluate(slots):
        sizes.append(len(slots.state.step))
        return evaluate(slots)

    def interrupted():
        stopped = len(sizes) == stop_after or len(calls) == stop_after_calls
        return Interrupted("", 15) if stopped else None

    program.train, program.evaluate = counted_train, counted_evaluate
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
            Validation(recipe.objective, data.validation_labels(), (rows >= 0).sum(axis=1)),
            size=size,
            devices=devices,
            finished=lambda result: results.update({result.member.name: result}),
            progress=progress,
            interrupted=interrupted,
            underway=saved,
            with_parameters=True,
        )
    return [results[entry.name] for entry in entries], sizes


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
    # Both end with the second evaluation, at which two members finish. The death comes before the
    # slots are saved, so the state of the call before continues, without the two.
    if end == "signal":
        evaluations = 2
        with pytest.raises(Interrupted):
            side_by_side(parts, tmp_path, size=4, stop_after=2)
    else:
        # Calls are of one step.
        monkeypatch.setattr(sweep_loop, "CALL", 1e-6)
        evaluations = 1
        monkeypatch.setattr(underway, "PAUSE", 0.0)
        with pytest.raises(ZeroDivisionError):
            side_by_side(parts, tmp_path, size=4, die_in=2)
    finished = {name: whole[name] for name in ("member 0", "member 3")}
    results, sizes = side_by_side(parts, tmp_path, size=4, finished=finished)
    assert sizes == together[1][evaluations:]
    assert not tmp_path.exists()
    assert_equal(results, together[0])


def assert_equal(results, others):
    for one, other in zip(results, others, strict=True):
        assert (one.best, one.history, one.metrics) == (other.best, other.history, other.metrics)
        jax.tree.map(np.testing.assert_array_equal, one.parameters, other.parameters)


@pytest.mark.slow
def test_a_signal_is_heard_between_two_evaluations(parts, together, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        side_by_side(parts, tmp_path, size=4, stop_after_calls=1)
    # The first call was of one step. Every further one is too, where that takes long.
    monkeypatch.setattr(sweep_loop, "CALL", 1e-6)
    with pytest.raises(Interrupted):
        side_by_side(parts, tmp_path, size=4, stop_after_calls=2)
    results, sizes = side_by_side(parts, tmp_path, size=4)
    assert sizes == together[1]
    assert_equal(results, together[0])


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

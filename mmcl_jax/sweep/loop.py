"""The loop of a sweep: fills the slots with members, until every member has been trained.

The members under way are at the same place of a period, which ends with an evaluation. A call of
the program takes their steps to its end, or as many as are done in a few seconds, so that progress
is seen and a signal heard. At the end of a period the members that have stopped make room for the
next. When at most half of the slots train, because none waits or because more were under way than
may train now, the program is made smaller, so that nothing is computed for members that have
stopped.
"""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from mmcl_jax.data.order import EpochOrder
from mmcl_jax.sweep.program import Program, Slots
from mmcl_jax.sweep.underway import Underway
from mmcl_jax.sweep.validation import Validation
from mmcl_jax.train import EarlyStopping, Interrupted, Schedule, selected

CALL = 5.0  # seconds of steps between two looks at signals


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        name: no two members have the same.
        hyper: numbers of its recipe, the same names for every member.
        seed: of every draw of its steps.
        initial: which of the program's initial parameters it starts from.
        order: rows of its batches.
    """

    name: str
    hyper: Mapping[str, float]
    seed: int
    initial: int
    order: EpochOrder


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a member.

    Attributes:
        member: as given.
        steps, best_step, stopped_early: as in the summary of `train.train`.
        best: value of the selecting metric at `best_step`; None where the member diverged.
        diverged: loss, gradient or prediction was no number; the member ended there.
        metrics: of its last evaluation.
        history: (step, mean training loss since the evaluation before, metrics).
        parameters: best (params, extra) on the host, where they were asked for.
    """

    member: Member
    steps: int
    best_step: int
    best: float | None
    stopped_early: bool
    diverged: bool
    metrics: Mapping[str, float]
    history: Sequence[tuple[int, float, Mapping[str, float]]]
    parameters: tuple[Any, Any] | None


@dataclasses.dataclass
class _Running:
    member: Member
    stopping: EarlyStopping
    step: int = 0
    diverged: bool = False
    losses: list[float] = dataclasses.field(default_factory=list)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    history: list[tuple[int, float, dict[str, float]]] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Of one that has not diverged."""
        return {
            "name": self.member.name,
            "stopping": self.stopping.to_json(),
            "step": self.step,
            # Copies: these grow while they are written in the background.
            "losses": list(self.losses),
            "metrics": self.metrics,
            "history": list(self.history),
        }


def train_members(
    program: Program,
    members: Sequence[Member],
    schedule: Schedule,
    validation: Validation,
    *,
    size: int,
    devices: int,
    finished: Callable[[Result], None],
    progress: Callable[[int, int], None],
    interrupted: Callable[[], Interrupted | None],
    underway: Underway,
    with_parameters: bool = False,
) -> None:
    """Trains `members`, which share a batch size, until each has stopped.

    Args:
        size: slots; fewer where there are fewer members, more where more were under way.
        devices: the number of slots is a multiple of them.
        finished: takes each result as soon as it is there.
        progress: takes the steps of the running members, and those trained since the last call.
        interrupted: what to raise after a call of the program, such as after a signal.
        underway: where the slots are saved on the way. Those that it holds go on; a member among
            them that is not in `members` makes room.
        with_parameters: results bring the best parameters.

    Raises:
        ValueError: the validation split does not give the metric that selects.
        Interrupted: what `interrupted` said, once the slots are saved.
        DamagedCheckpoint, OSError: of `underway`.
    """
    size = min(_multiple(size, devices), _multiple(len(members), devices))
    slots, running, waiting = _begin(program, members, schedule, size, devices, underway)
    if _rest(running, schedule):
        slots = _fill(program, slots, running, waiting, members[0], schedule, size)
    pace = _Pace()
    while any(running):
        begun = [one.step if one else 0 for one in running]
        slots = _train(program, slots, running, members[0], schedule, pace)
        trained = sum(one.step for one in running if one) - sum(begun)
        rest = _rest(running, schedule)
        if rest:
            slots = _evaluate_due(program, slots, running, schedule, validation)
        for position, one in enumerate(running):
            if one and (one.diverged or (rest and _ended(one, schedule))):
                parameters = program.best(slots, position) if with_parameters else None
                finished(_result(one, parameters))
                running[position] = None
        progress(sum(one.step for one in running if one), trained)
        if rest:
            slots = _fill(program, slots, running, waiting, members[0], schedule, size)
            slots, running = _compacted(program, slots, running, devices)
        if any(running):
            stop = interrupted()
            underway.save(slots, [one and one.to_json() for one in running], stopping=bool(stop))
            if stop:
                raise stop
    underway.finish()


def _begin(
    program: Program,
    members: Sequence[Member],
    schedule: Schedule,
    size: int,
    devices: int,
    underway: Underway,
) -> tuple[Slots, list[_Running | None], deque[Member]]:
    """Slots, at least `size` of them, who is in each of those that goes on, and who waits."""

    def shapes(count: int) -> Slots:
        return program.shapes(_initial([None] * count), _hyper([None] * count, members[0]))

    found = underway.restore(shapes)
    if found is None:
        waiting = deque(members)
        running = [_fresh(waiting.popleft(), schedule) if waiting else None for _ in range(size)]
        return program.begin(_initial(running), _hyper(running, members[0])), running, waiting
    slots, saved = found
    unfinished = {member.name: member for member in members}
    running = [
        _continued(entry, unfinished.pop(entry["name"]), schedule)
        if entry and entry["name"] in unfinished
        else None
        for entry in saved
    ]
    if more := max(size, _multiple(len(running), devices)) - len(running):
        slots = program.take(slots, np.array([*range(len(running)), *[0] * more]))
        running += [None] * more
    return slots, running, deque(unfinished.values())


def _continued(saved: Mapping[str, Any], member: Member, schedule: Schedule) -> _Running:
    one = _fresh(member, schedule)
    one.stopping = dataclasses.replace(one.stopping, **saved["stopping"])
    one.step, one.losses, one.metrics = saved["step"], saved["losses"], saved["metrics"]
    one.history = [tuple(entry) for entry in saved["history"]]
    return one


def _fill(
    program: Program,
    slots: Slots,
    running: list[_Running | None],
    waiting: deque[Member],
    example: Member,
    schedule: Schedule,
    most: int,
) -> Slots:
    """Puts members that wait into the slots of `running` that nobody has, until `most` train."""
    chosen = np.zeros(len(running), bool)
    training = sum(one is not None for one in running)
    for position, one in enumerate(running):
        if one is None and waiting and training + chosen.sum() < most:
            running[position] = _fresh(waiting.popleft(), schedule)
            chosen[position] = True
    if not chosen.any():
        return slots
    return program.refill(slots, chosen, _initial(running), _hyper(running, example))


class _Pace:
    """How many steps a call takes: one at first, then what the last call did in `CALL` seconds."""

    def __init__(self):
        self._steps = 1

    def steps(self, most: int) -> int:
        return min(self._steps, most)

    def update(self, steps: int, seconds: float) -> None:
        self._steps = max(1, int(CALL * steps / seconds))


def _train(
    program: Program,
    slots: Slots,
    running: list[_Running | None],
    example: Member,
    schedule: Schedule,
    pace: _Pace,
) -> Slots:
    active = np.array([one is not None and one.step < schedule.steps for one in running])
    if not active.any():
        return slots
    start = time.monotonic()
    period = _period(schedule)
    # The same for all but those in the last period, which may be shorter.
    left = min(_left(running[position], schedule) for position in np.flatnonzero(active))
    steps = pace.steps(left)
    rows = np.zeros((period, len(running), len(example.order[0])), np.int32)
    for position in np.flatnonzero(active):
        one = running[position]
        for k in range(steps):
            rows[k, position] = one.member.order[one.step + k]
    keys = jax.random.wrap_key_data(
        np.stack([jax.random.key_data(jax.random.key(_seed(one))) for one in running])
    )
    slots, log = program.train(slots, keys, _hyper(running, example), active, rows, steps)
    for position in np.flatnonzero(active):
        one, finite = running[position], log["finite"][:, position]
        one.losses += log["loss"][:, position].tolist()
        one.diverged = not finite.all()
        one.step += steps if finite.all() else int(np.argmin(finite)) + 1
    pace.update(steps, time.monotonic() - start)
    return slots


def _evaluate_due(
    program: Program,
    slots: Slots,
    running: list[_Running | None],
    schedule: Schedule,
    validation: Validation,
) -> Slots:
    """At the end of a period."""
    due = [
        one is not None
        and not one.diverged
        and (schedule.evaluate_every > 0 or one.step == schedule.steps)
        for one in running
    ]
    if not any(due):
        return slots
    means, outputs = program.evaluate(slots)
    improved = np.zeros(len(running), bool)
    for position in np.flatnonzero(due):
        one = running[position]
        mine = {name: values[position] for name, values in outputs.items()}
        if not all(np.isfinite(values).all() for values in mine.values()):
            one.diverged = True
            continue
        one.metrics = validation.metrics({k: v[:, position] for k, v in means.items()}, mine)
        value = selected(one.metrics, schedule.select, one.member.name)
        one.diverged = not math.isfinite(value)
        if not one.diverged:
            improved[position] = one.stopping.update(one.step, value)
            one.history.append((one.step, float(np.mean(one.losses)), one.metrics))
            one.losses = []
    return program.keep(slots, improved) if improved.any() else slots


def _compacted(
    program: Program, slots: Slots, running: list[_Running | None], devices: int
) -> tuple[Slots, list[_Running | None]]:
    """The same members in half of the slots, or half of these and so on, where they fit."""
    active = [position for position, one in enumerate(running) if one]
    size = len(running)
    while active and (half := _multiple(size // 2, devices)) < size and len(active) <= half:
        size = half
    if size == len(running):
        return slots, running
    idle = [position for position, one in enumerate(running) if not one]
    positions = (active + idle)[:size]
    return program.take(slots, np.array(positions)), [running[position] for position in positions]


def _fresh(member: Member, schedule: Schedule) -> _Running:
    sign = -1 if schedule.select.endswith("loss") else 1
    return _Running(member, EarlyStopping(sign, schedule.patience, schedule.band))


def _ended(one: _Running, schedule: Schedule) -> bool:
    """After an evaluation."""
    return one.stopping.stop or one.step == schedule.steps


def _result(one: _Running, parameters: tuple[Any, Any] | None) -> Result:
    return Result(
        member=one.member,
        steps=one.step,
        best_step=one.stopping.best_step,
        best=None if one.diverged else one.stopping.sign * one.stopping.best,
        stopped_early=one.stopping.stop,
        diverged=one.diverged,
        metrics=one.metrics,
        history=one.history,
        parameters=parameters,
    )


def _period(schedule: Schedule) -> int:
    """Steps between evaluations. Without them, an epoch: then others may begin."""
    return min(schedule.evaluate_every or schedule.steps_per_epoch, schedule.steps)


def _left(one: _Running, schedule: Schedule) -> int:
    """Steps to the end of the period."""
    period = _period(schedule)
    return min(period - one.step % period, schedule.steps - one.step)


def _rest(running: list[_Running | None], schedule: Schedule) -> bool:
    """Whether every member is at the end of a period, or has taken all its steps and waits."""
    return all(
        one is None
        or one.diverged
        or one.step % _period(schedule) == 0
        or one.step == schedule.steps
        for one in running
    )


def _initial(running: list[_Running | None]) -> Int[np.ndarray, " M"]:
    return np.array([one.member.initial if one else 0 for one in running], np.int32)


def _seed(one: _Running | None) -> int:
    return one.member.seed if one else 0


def _hyper(running: list[_Running | None], example: Member) -> dict[str, np.ndarray]:
    members = [one.member if one else example for one in running]
    return {
        name: np.array([member.hyper[name] for member in members], np.float32)
        for name in example.hyper
    }


def _multiple(number: int, of: int) -> int:
    return max(-(-number // of), 1) * of

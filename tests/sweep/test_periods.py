"""Whatever the lengths of calls and periods, each member is trained and evaluated as if alone.

The program is made up, with numbers instead of parameters, so that many schedules are tried with
many interruptions.
"""

import itertools
import json
import math

import numpy as np
import pytest

from mmcl_jax.sweep import loop
from mmcl_jax.train import Interrupted, Schedule


class Order:
    """Rows of a batch that say whose they are, and of which step."""

    def __init__(self, member):
        self.member = member

    def __getitem__(self, step):
        return np.array([self.member, step])


class MadeUpProgram:
    """Slots are {member, step, best: [M]}. A member in `diverging` does so at that step."""

    def __init__(self, diverging):
        self.diverging = diverging
        self.evaluations = self.frozen = 0

    def begin(self, which, hyper):
        fresh = {name: np.zeros(len(which), int) for name in ("step", "best")}
        return {"member": hyper["member"].astype(int), **fresh}

    def shapes(self, which, hyper):
        return None

    def refill(self, slots, chosen, which, hyper):
        fresh = self.begin(which, hyper)
        return {name: np.where(chosen, fresh[name], slots[name]) for name in slots}

    def train(self, slots, keys, hyper, active, rows, steps):
        assert 1 <= steps <= len(rows)
        log = {
            "loss": np.zeros((steps, len(active))),
            "finite": np.ones((steps, len(active)), bool),
        }
        for step, slot in itertools.product(range(steps), np.flatnonzero(active)):
            member, place = rows[step, slot]
            assert member == hyper["member"][slot] == slots["member"][slot]
            assert place == slots["step"][slot]
            log["loss"][step, slot] = loss(member, place)
            log["finite"][step, slot] = self.diverging.get(member) != place
            slots["step"][slot] += 1
        self.frozen += steps * int((~active).sum())
        return slots, log

    def evaluate(self, slots):
        self.evaluations += 1
        return {}, {"at": np.stack([slots["member"], slots["step"]], axis=1)}

    def keep(self, slots, improved):
        return {**slots, "best": np.where(improved, slots["step"], slots["best"])}

    def take(self, slots, positions):
        return {name: values[positions] for name, values in slots.items()}

    def best(self, slots, position):
        return slots["member"][position], slots["best"][position]


class InMemory:
    """Keeps what is under way; sometimes on the way, always when the sweep is stopping."""

    def __init__(self, draws):
        self.draws, self.saved = draws, None

    def restore(self, shapes):
        if self.saved is None:
            return None
        slots, members = self.saved
        return {name: values.copy() for name, values in slots.items()}, json.loads(members)

    def save(self, slots, members, *, stopping):
        if stopping or self.draws.random() < 0.3:
            copied = {name: values.copy() for name, values in slots.items()}
            self.saved = copied, json.dumps(members)

    def finish(self):
        self.saved = None


class MadeUpValidation:
    def metrics(self, means, outputs):
        member, step = outputs["at"]
        return {"val/loss": loss(member + 1000, step)}


def loss(member, step):
    return math.sin(7919 * member + 104729 * step)


def alone(member, schedule, diverging):
    """Steps, best step, history of a member; best step is None where it diverged."""
    stopping = loop._fresh(None, schedule).stopping
    losses, history = [], []
    for step in range(1, schedule.steps + 1):
        losses.append(loss(member, step - 1))
        if diverging.get(member) == step - 1:
            return step, None, history
        every = schedule.evaluate_every
        if step == schedule.steps or (every and step % every == 0):
            metrics = {"val/loss": loss(member + 1000, step)}
            stopping.update(step, metrics["val/loss"])
            history.append((step, np.mean(losses), metrics))
            losses = []
            if stopping.stop:
                break
    return step, stopping.best_step, history


def sweep(members, schedule, diverging, draws, interruptions):
    """Results of all members, by name; ends as often as `interruptions` says, and goes on."""
    results, underway, program = {}, InMemory(draws), MadeUpProgram(diverging)
    entries = [
        loop.Member(str(number), {"member": number}, number, 0, Order(number))
        for number in range(members)
    ]
    for attempt in range(interruptions + 1):
        looks = itertools.count()
        last = None if attempt == interruptions else draws.integers(0, 12)
        killed = draws.random() < 0.5

        def progress(running, taken, last=last, killed=killed, looks=looks):
            if killed and next(looks) == last:
                raise ZeroDivisionError

        def interrupted(last=last, killed=killed, looks=looks):
            return Interrupted("", 15) if not killed and next(looks) == last else None

        waiting = [entry for entry in entries if entry.name not in results]
        if not waiting:
            break
        try:
            loop.train_members(
                program, waiting, schedule, MadeUpValidation(), size=int(draws.integers(1, 9)),
                devices=int(draws.integers(1, 3)), progress=progress, interrupted=interrupted,
                finished=lambda result: results.setdefault(result.member.name, result),
                underway=underway, with_parameters=True,
            )  # fmt: skip
        except (Interrupted, ZeroDivisionError):
            continue
    return results


class AnySteps:
    def __init__(self, draws):
        self.draws = draws

    def steps(self, most):
        return int(self.draws.integers(1, most + 1))

    def update(self, steps, seconds):
        pass


@pytest.mark.parametrize("seed", range(40))
def test_each_member_is_trained_as_if_alone(seed, monkeypatch):
    draws = np.random.default_rng(seed)
    monkeypatch.setattr(loop, "_Pace", lambda: AnySteps(draws))
    steps, members = int(draws.integers(1, 20)), int(draws.integers(1, 10))
    schedule = Schedule(
        steps, int(draws.integers(1, 8)), 2, int(draws.integers(0, 12)), 1,
        patience=int(draws.integers(-1, 3)),
    )  # fmt: skip
    diverging = {m: int(draws.integers(0, steps)) for m in range(members) if draws.random() < 0.2}
    results = sweep(members, schedule, diverging, draws, int(draws.integers(0, 5)))
    assert len(results) == members
    for number in range(members):
        result = results[str(number)]
        expected = alone(number, schedule, diverging)
        best_step = None if result.diverged else result.best_step
        assert (result.steps, best_step, [tuple(line) for line in result.history]) == expected
        assert result.diverged == (best_step is None)
        if best_step:
            assert result.parameters == (number, best_step)


@pytest.mark.parametrize(
    ("every", "members", "diverging", "evaluations"),
    [
        (4, 9, {}, 9),
        (10, 9, {}, 6),
        (0, 9, {}, 3),
        # The last begins at step 10 of two others, which then wait for it to be evaluated.
        (10, 4, {0: 1}, 3),
    ],
)
def test_members_are_evaluated_together(every, members, diverging, evaluations, monkeypatch):
    monkeypatch.setattr(loop, "CALL", 1e-9)
    program, schedule = MadeUpProgram(diverging), Schedule(12, 6, 2, every, 1)
    entries = [loop.Member(str(n), {"member": n}, n, 0, Order(n)) for n in range(members)]
    loop.train_members(
        program, entries, schedule, MadeUpValidation(), size=3, devices=1,
        finished=lambda result: None, progress=lambda *steps: None, interrupted=lambda: None,
        underway=InMemory(np.random.default_rng(0)),
    )  # fmt: skip
    assert program.evaluations == evaluations
    assert (program.frozen > 0) == bool(diverging)

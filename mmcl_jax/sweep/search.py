"""Grid search of a stage: every combination of its settings, then all seeds of the best one.

For each target, the members of the search are the points of the grid with the seeds of the search.
The point with the best mean validation metric is then trained with every seed of the stage, in the
same way. Members of one batch size run side by side in one program (`program.py`), one batch
size after another. `mmcl_jax.main` sweeps where a stage has a grid (`grid.py`), as
`--config=configs/mmcl.py:sweep` gives it.

RUN/sweep/<stage>/<target>/ says how each member went (`results.py`). The members of the
chosen point are the stages `<stage>/<target>/<seed>`: their best parameters and done.json are where
`evaluate` and `report` look for those of any stage.

A sweep that was stopped goes on with the members that have not finished. Those that were under way
continue from where a signal found them; after a kill, from some minutes earlier (`underway.py`).
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mmcl_jax import stages
from mmcl_jax.checkpoints import Checkpoints
from mmcl_jax.data.order import EpochOrder
from mmcl_jax.objectives.base import Objective
from mmcl_jax.recipe import Recipe
from mmcl_jax.run_dir import MetricsWriter
from mmcl_jax.sharding import make_mesh
from mmcl_jax.stages import Stage
from mmcl_jax.state import State
from mmcl_jax.sweep import grid as sweep_grid
from mmcl_jax.sweep.data import SweepData
from mmcl_jax.sweep.grid import Point
from mmcl_jax.sweep.loop import Member, Result, train_members
from mmcl_jax.sweep.program import Program
from mmcl_jax.sweep.progress import Meter
from mmcl_jax.sweep.results import COLUMNS, Results, Task
from mmcl_jax.sweep.underway import Underway
from mmcl_jax.sweep.validation import Validation
from mmcl_jax.train import Interrupted, NonFiniteLoss, Schedule, SignalWatch

if TYPE_CHECKING:
    from mmcl_jax.experiment import Experiment

MEMBERS = 24  # side by side, where the settings do not say
_UNDERWAY = "underway-{round}-{size}"


def run(
    experiment: "Experiment", stage: Stage, seeds: Sequence[int], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Sweeps the target of `stage`, or what is left to do of it.

    Args:
        stage: one seed of the target.
        seeds: all of them.
        settings: all that the results depend on; a sweep continues with the same ones only.

    Returns:
        JSON summary of `stage`, as `train.train` returns it, with the `chosen` settings.

    Raises:
        ValueError: settings that do not fit, or a member of every point diverged.
        NonFiniteLoss: a seed of the chosen point diverged.
        Interrupted: after a signal; the members that had finished are kept, and those under way
            are saved.
    """
    sweep_grid.check(stage)
    sweep = _Sweep(experiment, stage, tuple(seeds), settings)
    with SignalWatch() as signals:
        point = sweep.search(signals)
        sweep.train_chosen(point, signals)
        if signals.received:
            # It came with the end of the last members.
            raise Interrupted(
                f"sweep of {stage.group}/{stage.target} stopped by {signals.name}; all members "
                "have finished and are kept",
                signals.received,
            )
    return sweep.conclude(point)["stages"][str(stage.seed)]


class _Sweep:
    """One target of a stage."""

    def __init__(
        self,
        experiment: "Experiment",
        stage: Stage,
        seeds: tuple[int, ...],
        settings: Mapping[str, Any],
    ):
        self._experiment, self._stage, self._seeds = experiment, stage, seeds
        self._name = f"{stage.group}/{stage.target}"
        sweep = stage.config["sweep"]
        self._slots = sweep.get("members", MEMBERS)
        self._search_seeds = tuple(sweep.get("seeds") or seeds[:1])
        _, _, self._labels = self._build(stage)
        self._points = sweep_grid.points(sweep["grid"], self._labels)
        self._data = SweepData(experiment.cohort, stage, self._labels)
        folder = experiment.run.make(f"sweep/{self._name}")
        self._results = Results(folder, self._points, stage.config["batch_size"])
        self._results.begin(settings)
        self._schedules: dict[int, Schedule] = {}  # by batch size
        self._initial: dict[int, tuple[Any, Any]] = {}  # by seed

    def search(self, signals: SignalWatch) -> int:
        """Trains the members of the search; the number of the best point."""
        numbers = range(len(self._points))
        tasks = [Task("search", point, seed) for point in numbers for seed in self._search_seeds]
        self._train(tasks, [task for task in tasks if task not in self._results], signals)
        values: dict[int, list[float | None]] = {}
        for task in tasks:
            values.setdefault(task.point, []).append(self._results[task]["best"])
        lowest = self._schedule(self._at(tasks[0])).select.endswith("loss")
        return sweep_grid.choose(values, -1 if lowest else 1)

    def train_chosen(self, point: int, signals: SignalWatch) -> None:
        """Trains every seed of a point and saves its best parameters as those of its stage."""
        tasks = [Task("chosen", point, seed) for seed in self._seeds]
        todo = [
            task
            for task in tasks
            if task not in self._results or not self._folder(task).joinpath("best").is_dir()
        ]
        self._train(tasks, todo, signals)

    def conclude(self, point: int) -> dict[str, Any]:
        """Writes best.json and returns its content."""
        tasks = [Task("chosen", point, seed) for seed in self._seeds]
        member = self._at(tasks[0])
        schedule = self._schedule(member)
        records = {task.seed: self._results[task] for task in tasks}
        values = [record["best"] for record in records.values()]
        summaries = {
            str(seed): {
                **{name: record[name] for name in (*COLUMNS, "metrics") if name != "diverged"},
                "epochs": record["steps"] / schedule.steps_per_epoch,
                "select": schedule.select,
                "hand_on": "best",
                "records": len(self._data.rows),
                "chosen": self._points[point],
            }
            for seed, record in records.items()
        }
        best = {
            "point": point,
            "points": len(self._points),
            "chosen": self._points[point],
            "hyper": self._hyper(member, self._points[point]),
            "batch_size": schedule.batch_size,
            "select": schedule.select,
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "search": [self._results[Task("search", point, s)]["best"] for s in self._search_seeds],
            "stages": summaries,
        }
        if self._results.write_best(best):
            chosen = ", ".join(f"{axis} {value:g}" for axis, value in best["chosen"].items())
            spread = f" (sd {best['sd']:.4f} over {len(values)} seeds)" if len(values) > 1 else ""
            print(
                f"  best of {best['points']} points: {chosen}; {schedule.select} "
                f"{best['mean']:.4f}{spread}",
                flush=True,
            )
        return best

    # --- training ------------------------------------------------------------------------------

    def _train(self, tasks: Sequence[Task], todo: Sequence[Task], signals: SignalWatch) -> None:
        """Trains `todo`, those of `tasks` that are left, one batch size after another."""
        if todo:
            self._train_groups(tasks, todo, signals)
        # A kill may have come between the last result and the removal.
        for folder in self._results.folder.glob(_UNDERWAY.format(round=tasks[0].round, size="*")):
            shutil.rmtree(folder, ignore_errors=True)

    def _train_groups(
        self, tasks: Sequence[Task], todo: Sequence[Task], signals: SignalWatch
    ) -> None:
        groups: dict[int, list[Task]] = {}
        for task in todo:
            groups.setdefault(self._at(task).config["batch_size"], []).append(task)
        schedules = {size: self._schedule(self._at(group[0])) for size, group in groups.items()}
        print(
            f"  {len(self._data.rows)} training and {len(self._data.val_rows)} validation "
            f"recordings, {len(todo)} of {len(tasks)} members to train, batch size "
            f"{' and '.join(map(str, groups))}",
            flush=True,
        )
        meter = Meter(
            f"sweep {self._name} ({todo[0].round})",
            steps=sum(schedules[size].steps * len(group) for size, group in groups.items()),
            members=len(tasks),
            finished=len(tasks) - len(todo),
        )
        try:
            with meter.bar:
                for size, group in groups.items():
                    if stop := self._stopped(signals, meter):
                        raise stop
                    self._train_group(group, schedules[size], meter, signals)
        finally:
            self._results.write_table()

    def _train_group(
        self, tasks: Sequence[Task], schedule: Schedule, meter: Meter, signals: SignalWatch
    ) -> None:
        """Trains tasks with one batch size."""
        mesh, size = make_mesh(), schedule.batch_size
        seeds = sorted({task.seed for task in tasks})
        objective, recipe = self._recipe(self._at(tasks[0]))
        parts = self._data.parts(stages.sweep_evaluation_size(size, len(self._data.val_rows)))
        program = Program(
            recipe,
            [self._start(seed) for seed in seeds],
            mesh,
            *self._data.load(self._experiment.recordings),
            parts,
        )
        members = {task: self._member(task, seeds, size) for task in tasks}
        task_of = {member.name: task for task, member in members.items()}

        def finished(result: Result) -> None:
            self._finish(task_of[result.member.name], result, schedule)
            meter.finish(schedule.steps)

        round_name = tasks[0].round
        folder = f"sweep/{self._name}/{_UNDERWAY.format(round=round_name, size=size)}"
        with Underway(self._experiment.run.make(folder)) as underway:
            train_members(
                program,
                list(members.values()),
                schedule,
                Validation(objective, self._data.validation_labels(), (parts >= 0).sum(axis=1)),
                size=self._slots,
                devices=mesh.devices.size,
                finished=finished,
                progress=meter.update,
                interrupted=lambda: self._stopped(signals, meter),
                underway=underway,
                with_parameters=round_name == "chosen",
            )

    def _stopped(self, signals: SignalWatch, meter: Meter) -> Interrupted | None:
        if not signals.received:
            return None
        return Interrupted(
            f"{meter.title} stopped by {signals.name}; {meter.finished} of {meter.members} "
            "members have finished; any under way are saved",
            signals.received,
        )

    def _member(self, task: Task, seeds: Sequence[int], batch_size: int) -> Member:
        stage = self._at(task)
        order_seed = stage.config["order_seed"]
        return Member(
            name=f"{stage.name} ({task.round}, point {task.point})",
            hyper=self._hyper(stage, self._points[task.point]),
            seed=task.seed,
            initial=seeds.index(task.seed),
            order=EpochOrder(
                self._data.rows,
                self._data.subjects,
                batch_size,
                task.seed if order_seed < 0 else order_seed,
                slice(0, batch_size),
            ),
        )

    def _at(self, task: Task) -> Stage:
        return sweep_grid.at_point(self._stage, self._points[task.point], task.seed)

    def _build(self, stage: Stage):
        experiment = self._experiment
        return stages.build(stage, experiment.config["models"], experiment.cohort)

    def _schedule(self, stage: Stage) -> Schedule:
        size = stage.config["batch_size"]
        if size not in self._schedules:
            self._schedules[size] = stages.schedule(
                stage, self._experiment.cohort, self._data.rows, self._labels
            )
        return self._schedules[size]

    def _recipe(self, stage: Stage) -> tuple[Objective, Recipe]:
        objective, views, _ = self._build(stage)
        # A member is on one device.
        views = dataclasses.replace(views, mesh=None)
        return objective, stages.recipe(stage, objective, views, self._schedule(stage))

    def _hyper(self, stage: Stage, point: Point) -> dict[str, float]:
        """Of the recipe, with the settings of the model that the grid changes also where 0."""
        forced = {axis: float(point[axis]) for axis in sweep_grid.MODEL_AXES if axis in point}
        return {**self._recipe(stage)[1].hyper, **forced}

    def _start(self, seed: int) -> tuple[Any, Any]:
        """Initial (params, extra) of a seed, on the host."""
        if seed not in self._initial:
            stage = dataclasses.replace(self._stage, seed=seed)
            objective, views, _ = self._build(stage)
            found = self._experiment.initial(stage, objective, views, self._data.example())
            self._initial[seed] = jax.device_get(found)
        return self._initial[seed]

    # --- results -------------------------------------------------------------------------------

    def _folder(self, task: Task):
        return self._experiment.run.stage(f"{self._name}/{task.seed}") / "checkpoints"

    def _finish(self, task: Task, result: Result, schedule: Schedule) -> None:
        """Saves what a member of the chosen point has learned; then it counts as finished."""
        if task.round == "chosen":
            if result.diverged:
                raise NonFiniteLoss(
                    f"stage {self._name}/{task.seed}, step {result.steps}: loss, gradient or "
                    f"prediction is no number with the chosen settings {self._points[task.point]}; "
                    "take them out of the grid"
                )
            self._save(task, result, schedule)
        found = {name: getattr(result, name) for name in COLUMNS}
        self._results.add(task, {**found, "metrics": dict(result.metrics)})

    def _save(self, task: Task, result: Result, schedule: Schedule) -> None:
        folder = self._folder(task)
        # Orbax would not save a step before the last one that it finds.
        shutil.rmtree(folder, ignore_errors=True)
        params, extra = result.parameters
        with Checkpoints(folder.parent) as saved:
            saved.save_best(State(np.asarray(result.best_step, np.int32), params, extra, None))
        stage = self._at(task)
        rate = stages.learning_rate(stage, schedule)
        writers = self._experiment.config["writers"]
        writer = MetricsWriter(self._experiment.run, stage.name, **writers)
        for step, loss, metrics in result.history:
            values = {"train/loss": loss, "train/learning_rate": float(rate(step - 1)), **metrics}
            writer.write(step, step / schedule.steps_per_epoch, values)
        writer.close()

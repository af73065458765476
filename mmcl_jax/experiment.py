"""An experiment: the ordered stages of a configuration, what is done of them, and the hand-off.

The verbs `evaluate`, `interpret` and `report` are stages too; they run again when a stage before
them has been trained anew.
"""

import dataclasses
import functools
import importlib
import json
import pathlib
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmcl_jax import (
    checkpoints,
    device_memory,
    distributed,
    objectives,
    origins,
    stage_settings,
    stages,
    tabular,
)
from mmcl_jax.augment.views import Views
from mmcl_jax.data import finite, pipeline
from mmcl_jax.data.cohort import Cohort, check_settings, open_cohort, write
from mmcl_jax.data.resident import Recordings
from mmcl_jax.data.sources.synthetic import Synthetic
from mmcl_jax.data.targets import labels as label_lists
from mmcl_jax.data.targets.labels import Label
from mmcl_jax.data.targets.shuffled_labels import shuffle_labels
from mmcl_jax.retry import say
from mmcl_jax.run_dir import RunDir, differences, write_atomically
from mmcl_jax.stages import Stage
from mmcl_jax.state import State, initialise
from mmcl_jax.sweep import search
from mmcl_jax.train import train

VERBS = ("evaluate", "interpret", "probe", "report")


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained stage, ready for use.

    Attributes:
        objective, views: as trained; `views` makes the clean views of evaluation.
        params, extra: host arrays.
        labels: what the head predicts, in order; empty for pre-training.
        step: optimiser steps behind the parameters.
    """

    objective: objectives.Objective
    views: Views
    params: Any
    extra: Any
    labels: tuple[Label, ...]
    step: int


class Experiment:
    """A configuration (plain nested dict) and the run directory it fills.

    Args:
        force: go on with stages that the run directory holds with other settings; says so.
    """

    def __init__(self, config: Mapping[str, Any], run: RunDir, *, force: bool = False):
        self.config, self.run = config, run
        self._force, self._forced = force, set[str]()
        self.stages = stages.expand(config)
        self._cohort: Cohort | None = None
        # A configuration of an earlier version has not all of them.
        reading = {k: v for k, v in config["data"].items() if k in stage_settings.PLACES}
        self.recordings = Recordings(**reading)

    @classmethod
    def open(cls, run_dir: str | pathlib.Path) -> "Experiment":
        """The experiment that filled `run_dir`."""
        run = RunDir(run_dir)
        return cls(run.read_config(), run)

    @property
    def cohort_path(self) -> pathlib.Path:
        return pathlib.Path(self.config["data"]["path"] or self.run.path / "cohort")

    @property
    def cohort(self) -> Cohort:
        """The cohort of the run; the synthetic one is prepared on first use."""
        if self._cohort is None:
            data, path = self.config["data"], self.cohort_path
            if not data["path"]:
                prepare = functools.partial(self._prepare_synthetic, path)
                distributed.on_first(prepare, "synthetic cohort", path)
            cohort = open_cohort(path)
            check_settings(cohort, self._preprocessing())
            shuffled = data.get("shuffle_labels", False)
            cohort = shuffle_labels(cohort, self.config["seed"]) if shuffled else cohort
            stage_settings.check_records(self.run, self.training_stages(), cohort, self._force)
            self._cohort = cohort
        return self._cohort

    def _prepare_synthetic(self, path: pathlib.Path) -> None:
        source = Synthetic(**self.config["data"]["synthetic"])
        if not path.exists():
            print(f"no data.path: preparing the synthetic cohort {path}", flush=True)
            workers = self.config["data"]["prepare_workers"]
            report = write(source, path, workers=None if workers < 0 else workers)
            print(report, end="", flush=True)
        # A cohort of an earlier version lacks what could not be chosen then.
        found = {**Synthetic().parameters, **open_cohort(path).parameters}
        if lines := differences(found, source.parameters):
            raise ValueError(
                f"{path} is another synthetic cohort than data.synthetic asks for: "
                f"{'; '.join(lines)}. Use a new --workdir"
            )
        # matplotlib costs a second; a finished run need not wait for it.
        from mmcl_jax.data.preparing.cohort_figures import PREVIEW, write_preview

        if not (path / PREVIEW).is_file():
            print(f"preview: {write_preview(path)}", flush=True)

    def run_all(self, selected: Sequence[str] = ()) -> bool:
        """Runs what is not done yet, in order; True where anything had to be run.

        Args:
            selected: names of stages or groups; empty for all.
        """
        chosen = [stage for stage in self.stages if not selected or _chosen(stage, selected)]
        unknown = [
            name for name in selected if not any(_chosen(stage, [name]) for stage in self.stages)
        ]
        if unknown:
            raise ValueError(
                f"no stage {', '.join(unknown)}; the configuration has "
                f"{', '.join(dict.fromkeys(stage.group for stage in self.stages))}"
            )
        to_train = [s for s in chosen if s.group not in VERBS and not self.run.done(s.name)]
        for stage in to_train:
            stages.check(stage, self.stages[: self.stages.index(stage)])
        origins.check(self, to_train)
        for stage in to_train:
            cohort = self.cohort
            try:
                stages.check_records(stage, cohort)
            except ValueError as error:
                raise ValueError(f"stage {stage.name}: {error}") from error
        ran = False
        for number, stage in enumerate(chosen, 1):
            if self.is_done(stage):
                continue
            ran = True
            print(f"stage {stage.name} ({number} of {len(chosen)})", flush=True)
            started, inputs = time.time(), self._inputs(stage)
            if stage.group in VERBS:
                verb = importlib.import_module(f"mmcl_jax.{stage.group}")
                run_verb = functools.partial(
                    stages.call,
                    verb.run,
                    {"experiment": self, **stage.config},
                    f"stages.{stage.group}",
                )
                # The report reads files; the other verbs compute with all devices.
                alone = stage.group == "report"
                summary = distributed.on_first(run_verb, stage.name) if alone else run_verb()
            elif stage.config["objective"] == "tabular":
                self._write_settings(stage)
                fit = functools.partial(tabular.train, self, stage)
                summary = distributed.on_first(fit, stage.name)
            else:
                with device_memory.explained(stage, self.config):
                    summary = (self.sweep if stage.config.get("sweep") else self.train)(stage)
            record = {"id": uuid.uuid4().hex, "inputs": inputs}
            if stage.group not in VERBS:
                record["preprocessing_hash"] = self.cohort.settings_hash
                record["source"] = self.cohort.source_name
            if stage.target:
                # For inference where the cohort is not.
                labels = stages.target_labels(stage, self.cohort)
                record["labels"] = label_lists.to_json(labels)
                found = self.cohort.statistics
                record["statistics"] = {x.name: found[x.name] for x in labels if x.name in found}
            seconds = round(time.time() - started, 1)
            record |= {"seconds": seconds, **(summary or {})}
            mark = functools.partial(self.run.mark_done, stage.name, record)
            file = self.run.stage(stage.name) / "done.json"
            distributed.on_first(mark, f"end of stage {stage.name}", file)
        return ran

    def is_done(self, stage: Stage) -> bool:
        """Raises ValueError where a training stage was begun or finished with other settings."""
        # Hours may have passed since the stage before.
        self.run.reach()
        done = self.run.done(stage.name)
        if stage.group in VERBS:
            return done is not None and done["inputs"] == self._inputs(stage)
        self._check_unchanged(stage)
        return done is not None

    def training_stages(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.group not in VERBS]

    # --- training ------------------------------------------------------------------------------

    def train(self, stage: Stage) -> dict[str, Any]:
        """Trains one stage, from its latest checkpoint where there is one."""
        config = stage.config
        on_corrupt = self.config["data"].get("on_corrupt", "stop")
        cohort = dataclasses.replace(self.cohort, on_corrupt=on_corrupt)
        objective, views, labels = stages.build(stage, self.config["models"], cohort)
        names = tuple(label.name for label in labels)
        fields = tuple(config["fields"])
        rows, val_rows = stages.select_rows(stage, cohort, labels)
        batch_size = config["batch_size"]
        schedule = stages.schedule(stage, cohort, rows, labels)
        shards = {"process_index": jax.process_index(), "process_count": jax.process_count()}

        order_seed = stage.seed if config["order_seed"] < 0 else config["order_seed"]

        def train_batches(start_step: int):
            return pipeline.train_batches(
                cohort, "train", rows, seed=order_seed, start_step=start_step,
                workers=recordings.workers, cache=recordings.caches.get("train"),
                without=recordings.unreadable.get("train", ()), batch_size=batch_size,
                **common, **shards,
            )  # fmt: skip

        def eval_batches():
            return pipeline.eval_batches(
                cohort, "val", val_rows, cache=recordings.caches.get("val"),
                without=recordings.unreadable.get("val", ()), batch_size=evaluation_size,
                **common, **shards,
            )  # fmt: skip

        print(
            f"  {len(rows)} training and {len(val_rows)} validation recordings, {schedule.steps} "
            f"steps of {batch_size}",
            flush=True,
        )
        (example,) = pipeline.eval_batches(
            cohort, "val", val_rows[:2], fields=fields, labels=names, batch_size=2
        )
        evaluation_size = stages.evaluation_batch_size(stage, objective, example, len(val_rows))
        params, extra = self.initial(stage, objective, views, example)
        self._write_settings(stage)
        recipe = stages.recipe(stage, objective, views, schedule)
        # Compiled as one program, not as one for each shape.
        init = jax.jit(recipe.optimizer(params, recipe.hyper).init)
        state = State(np.zeros((), np.int32), params, extra, init(params))
        recordings = self.recordings.of(cohort, {"train": rows, "val": val_rows}, fields)
        common = {"fields": recordings.fields, "labels": names}
        with checkpoints.Checkpoints(self.run.stage(stage.name)) as saved:
            summary = train(
                self.run,
                stage.name,
                recipe,
                state,
                saved,
                learning_rate=stages.learning_rate(stage, schedule),
                schedule=schedule,
                train_batches=train_batches,
                eval_batches=eval_batches,
                seed=stage.seed,
                train_resident=recordings.resident.get("train"),
                eval_resident=recordings.resident.get("val"),
                writers=self.config["writers"],
                describe=functools.partial(finite.describe, cohort, fields=fields, labels=names),
                # A configuration of an earlier version has no choice of it.
                **self.config.get("sharding", {}),
            )
        return {**summary, "hand_on": config["hand_on"], "records": len(rows)}

    def sweep(self, stage: Stage) -> dict[str, Any]:
        """Searches the grid of one target, where that is not done yet, and trains all its seeds."""
        self._write_settings(stage)
        peers = [s for s in self.stages if (s.group, s.target) == (stage.group, stage.target)]
        settings = {k: v for k, v in self._settings(stage).items() if k != "seed"}
        settings["cohort"] = stage_settings.fingerprint(self.cohort, stage)
        return search.run(self, stage, [peer.seed for peer in peers], settings)

    def initial(
        self, stage: Stage, objective: objectives.Objective, views: Views, example: Mapping
    ) -> tuple[Any, Any]:
        """Parameters and extra collections that a stage starts from.

        Args:
            example: a batch; its first rows are read.
        """
        # A stream of its own: the steps fold their number, which is smaller, into the same root.
        key = jax.random.fold_in(jax.random.key(stage.seed), 2**31 - 1)
        params, extra = initialise(objective, views, _first_rows(example), key)
        params, extra = origins.take_over(self, stage, params, extra)
        return params, objective.update_extra(params, extra)

    def load(self, stage: Stage) -> Model:
        """A finished stage with the parameters that it hands on.

        Raises:
            CohortError: the cohort was preprocessed otherwise than what the stage was trained on.
        """
        done = self.require_done(stage.name)
        check_settings(self.cohort, self.trained_on(stage.name))
        params, extra, step = checkpoints.load(self.run.stage(stage.name), done["hand_on"])
        objective, views, labels = stages.build(stage, self.config["models"], self.cohort)
        return Model(objective, views, params, extra, labels, step)

    def require_done(self, name: str) -> dict[str, Any]:
        """done.json of a stage. Raises ValueError where it is not done."""
        done = self.run.done(name)
        if done is None:
            raise ValueError(f"stage {name} of {self.run.path} is not done; run it first")
        return done

    def trained_on(self, name: str) -> dict[str, Any]:
        """The preprocessing settings of what a stage was trained on, by modality."""
        settings = json.loads((self.run.stage(name) / "stage.json").read_text())
        found = settings["data"]["preprocessing"]
        return {field: found[field] for field in settings["stage"]["fields"] if field in found}

    # --- bookkeeping ---------------------------------------------------------------------------

    def _inputs(self, stage: Stage) -> dict[str, Any]:
        """What a stage depends on: the ids of stages, and for a verb its settings."""
        if stage.group not in VERBS:
            return {"runs": self._ids(tuple(stage.config["init"].values()))}
        before = [other.name for other in self.stages[: self.stages.index(stage)]]
        return {"settings": stage_settings.plain(stage.config), "runs": self._ids(before)}

    def _ids(self, names: Sequence[str]) -> dict[str, str]:
        """Of those stages, of this run or RUN:STAGE, that are there and finished."""
        found = {}
        for name in names:
            folder, _, stage = name.rpartition(":")
            if done := (RunDir(folder) if folder else self.run).done(stage):
                found[name] = done["id"]
        return found

    def _preprocessing(self) -> dict[str, Any]:
        """The preprocessing settings of every modality that a stage reads."""
        fields = {field for stage in self.training_stages() for field in stage.config["fields"]}
        wanted = self.config["data"]["preprocessing"]
        return {field: settings for field, settings in wanted.items() if field in fields}

    def _settings(self, stage: Stage) -> dict[str, Any]:
        return stage_settings.of_stage(self.config, stage, self._inputs(stage)["runs"])

    def _write_settings(self, stage: Stage) -> None:
        if stage.name in self._forced and jax.process_index() == 0:
            # What the first steps were taken with.
            file = self.run.stage(stage.name) / "stage.json"
            file.replace(file.with_name(f"stage.until-{time.strftime('%Y%m%d-%H%M%S')}.json"))
        fingerprint = stage_settings.fingerprint(self.cohort, stage)
        distributed.check_same(fingerprint, f"records or labels of {self.cohort.path}")
        settings = {**self._settings(stage), "cohort": fingerprint}
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        write_atomically(self.run.make_stage(stage.name) / "stage.json", text)

    def _check_unchanged(self, stage: Stage) -> None:
        file = self.run.stage(stage.name) / "stage.json"
        if not (file.is_file() and (self.run.done(stage.name) or checkpoints.any_of(file.parent))):
            # Nothing has been trained with them.
            return
        before = json.loads(file.read_text())
        # Checked where the cohort is opened, which a finished run does not do.
        before.pop("cohort", None)
        now = self._settings(stage)
        # Another run that has been moved or deleted since is no reason to train anew.
        then, there = before["started_from"], now["started_from"]
        for name in then.keys() ^ there.keys():
            if ":" in name:
                then.pop(name, None)
                there.pop(name, None)
        lines = stage_settings.changed(before, now)
        if lines and not self._force:
            raise ValueError(
                f"{self.run.path} holds stage {stage.name} with other settings: "
                f"{'; '.join(lines)}. Use a new --workdir, delete {file.parent} to run it again, "
                "or keep what is there with --force_config"
            )
        if lines and stage.name not in self._forced:
            self._forced.add(stage.name)
            what = "stays as it is" if self.run.done(stage.name) else "goes on"
            say(f"forced: stage {stage.name} {what} despite other settings: {'; '.join(lines)}")


def _chosen(stage: Stage, selected: Sequence[str]) -> bool:
    return any(f"{stage.name}/".startswith(f"{name.rstrip('/')}/") for name in selected)


def _first_rows(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Parameter shapes do not depend on the batch; two rows keep initialisation cheap.
    return {name: rows[:2] for name, rows in batch.items()}

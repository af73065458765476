"""Which runs the paper needs, in which order, and what they share.

A configuration of the paper (`configs/paper.py`) names runs, each a configuration beside it with
changes. From it follow:

- *sharing*: a stage of pre-training whose settings, models, data, seed and origins are those of a
  stage of an earlier run is taken from there. So all methods that start from masked data modelling
  start from the same encoder, trained once, and runs with fewer labels train nothing but the
  fine-tuning.
- *choices*: a setting of pre-training that is chosen on the validation split, such as the learning
  rate of the contrastive stage: one run per value, up to that stage. The value with the best
  validation metric is written down once, in choices/<name>/choice.json, and used by all runs that
  the choice is for.
"""

import copy
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmcl_jax import default_config, stage_settings, stages
from mmcl_jax.flag_errors import in_one_line
from mmcl_jax.paper import choice as paper_choice
from mmcl_jax.run_dir import RunDir


@dataclasses.dataclass(frozen=True)
class Run:
    """One run directory to fill.

    Attributes:
        name: path below the workdir, such as `mmcl`, `mmcl_10pct` or `choices/mmcl/0.0001`.
        path: the directory.
        config: of the experiment, without the stages that are taken from other runs.
        taken: RUN:STAGE by stage that is taken.
    """

    name: str
    path: pathlib.Path
    config: Mapping[str, Any]
    taken: Mapping[str, str]

    @property
    def is_candidate(self) -> bool:
        """Run for a choice."""
        return self.name.startswith("choices/")

    @property
    def title(self) -> str:
        """For the log: what is trained here and what comes from elsewhere."""
        own = [name for name in self.config["order"] if _trains(self.config, name)]
        parts = [f"{self.name} ({', '.join(own) or 'nothing to train'})"]
        for stage, origin in self.taken.items():
            run, _, name = origin.rpartition(":")
            folder = self.path.parents[self.name.count("/")]
            parts.append(f"{stage} from {pathlib.Path(run).relative_to(folder)}:{name}")
        return ", ".join(parts)


class Plan:
    """The runs of a configuration of the paper.

    Args:
        config: plain nested dict, see `configs/paper.py`.
        configs: folder that the files of the runs are in.
        folder: of all runs.

    Raises:
        ValueError: a run or a choice that does not fit.
    """

    def __init__(self, config: Mapping[str, Any], configs: pathlib.Path, folder: pathlib.Path):
        path = config["data"]["path"]
        path = str(pathlib.Path(path).expanduser().resolve()) if path else ""
        config = {**config, "data": {**config["data"], "path": path}}
        self.folder, self._config, self._configs = folder, config, configs
        unknown = [name for name in config["order"] if name not in config["runs"]]
        for name, choice in config["choices"].items():
            unknown += [run for run in choice["runs"] if run not in config["runs"]]
            if not choice["values"]:
                raise ValueError(f"choices.{name} has no values")
        if unknown:
            raise ValueError(f"no run {', '.join(unknown)}; known: {', '.join(config['runs'])}")
        self.blocked: dict[str, str] = {}  # why a run cannot be begun, after `steps`
        self._diverged: set[pathlib.Path] = set()

    def prepare_cohort(self) -> None:
        """Prepares the synthetic cohort that all runs share, where no other one is named."""
        from mmcl_jax.experiment import Experiment

        first = next(self.steps(dry=True)).config
        if not self._config["data"]["path"]:
            # As a run alone would do it in its own directory.
            own = {**first, "data": {**first["data"], "path": ""}}
            _ = Experiment(own, RunDir(self.folder)).cohort

    def steps(self, selected: Sequence[str] = (), *, dry: bool = False) -> Iterator[Run]:
        """The runs in order. Each must have been run, or have failed, before the next is asked for.

        Args:
            selected: names of runs of the configuration; empty for all.
            dry: nothing is run, so a choice that is not made yet is taken to be its first value.
        """
        order = self._config["order"]
        if unknown := sorted(set(selected) - set(order)):
            raise ValueError(
                f"no run {', '.join(unknown)}; the configuration has {', '.join(order)}"
            )
        self.blocked = {}
        known: dict[str, str] = {}  # identity of a stage -> RUN:STAGE
        candidates: dict[str, list[Run]] = {}
        tried: set[str] = set()
        chosen: dict[str, Any] = {}
        for name in order:
            # The others say what there is to take.
            wanted = not selected or name in selected
            config = self._load(name)
            try:
                for choice in self._choices(name):
                    if choice not in candidates:
                        candidates[choice] = list(self._candidates(choice, known))
                    if wanted and choice not in tried:
                        tried.add(choice)
                        yield from self._to_run(choice, candidates[choice])
                    if wanted and choice not in chosen:
                        chosen[choice] = self._choose(choice, dry)
                    value = chosen[choice] if wanted else self._choose(choice, dry=True)
                    paper_choice.put(config, self._config["choices"][choice], value)
            except paper_choice.NotMade as error:
                self.blocked[name] = str(error)
                continue
            run = self._share(name, config, known)
            if wanted:
                yield run

    def note_divergence(self, run: Run) -> None:
        """The loss of a run was no number; a choice then leaves it out."""
        self._diverged.add(run.path)

    def describe(self) -> str:
        """The plan as text."""
        lines = []
        for run in self.steps(dry=True):
            done = [RunDir(run.path).done(stage.name) for stage in stages.expand(run.config)]
            state = f"{sum(x is not None for x in done)} of {len(done)} stages done"
            lines.append(f"{run.title}: {state}")
        for name, settings in self._config["choices"].items():
            value = paper_choice.made(self.folder / "choices" / name, settings)
            lines.append(f"choice {name}: {'not made yet' if value is None else value}")
        return "\n".join(lines)

    # --- configurations ------------------------------------------------------------------------

    def _load(self, name: str) -> dict[str, Any]:
        """The configuration of a run with its changes, on the data that all runs share."""
        entry = self._config["runs"][name]
        file, _, argument = entry["config"].partition(":")
        here = str(self._configs / "paper.py")
        config = default_config.neighbour(here, file.removesuffix(".py"))(argument or None)
        try:
            config.update(_lists_as_tuples(entry["changes"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"changes of run {name} do not fit {entry['config']}: {in_one_line(error)}"
            ) from error
        plain = json.loads(config.to_json())
        left_out = self._config["leave_out"]
        plain["order"] = [stage for stage in plain["order"] if stage not in left_out]
        data = {**self._config["data"]}
        data["path"] = data["path"] or str(self.folder / "cohort")
        plain["data"] = data
        return plain

    def _share(self, name: str, config: dict[str, Any], known: dict[str, str]) -> Run:
        """The run without the stages that an earlier one trains; its own become known."""
        path = self.folder / name
        identities: dict[str, str] = {}
        taken: dict[str, str] = {}
        for stage in config["order"]:
            if not _trains(config, stage) or stage in _fine_tuning(config):
                continue
            identities[stage] = _identity(config, stage, identities)
            here = f"{path}:{stage}"
            origin = known.setdefault(identities[stage], here)
            if origin != here:
                taken[stage] = origin
        config = _without(config, taken)
        own = [stage for stage in identities if stage not in taken]
        used = {at for stage in config["stages"].values() for at in stage.get("init", {}).values()}
        taken = {stage: origin for stage, origin in taken.items() if origin in used}
        with_ecg = [stage for stage in own if "ecg_encoder" in config["stages"][stage]["towers"]]
        if self._config["probe"] and with_ecg:
            order = config["order"]
            # A report has what was done before it.
            order.insert(order.index("report") if "report" in order else len(order), "probe")
            config["stages"]["probe"] = {"stage": with_ecg[-1], **self._config["probe"]}
        return Run(name, path, config, taken)

    # --- choices -------------------------------------------------------------------------------

    def _choices(self, name: str) -> list[str]:
        return [key for key, choice in self._config["choices"].items() if name in choice["runs"]]

    def _candidates(self, choice: str, known: dict[str, str]) -> Iterator[Run]:
        settings = self._config["choices"][choice]
        for value in settings["values"]:
            config = self._load(settings["runs"][0])
            paper_choice.put(config, settings, value)
            # Up to the stage, and what is computed from it.
            end = config["order"].index(settings["stage"])
            before, after = config["order"][: end + 1], config["order"][end + 1 :]
            config["order"] = before + [name for name in after if not _trains(config, name)]
            yield self._share(f"choices/{choice}/{value:g}", config, known)

    def _to_run(self, choice: str, candidates: Sequence[Run]) -> list[Run]:
        """All of them, or the chosen one once the choice is made."""
        settings = self._config["choices"][choice]
        value = paper_choice.made(self.folder / "choices" / choice, settings)
        pairs = zip(settings["values"], candidates, strict=True)
        return [run for other, run in pairs if value is None or other == value]

    def _choose(self, choice: str, dry: bool) -> Any:
        """The value that was chosen, or is now; the first one where nothing is run."""
        settings, folder = self._config["choices"][choice], self.folder / "choices" / choice
        value = paper_choice.made(folder, settings)
        if value is None and dry:
            return settings["values"][0]
        return paper_choice.make(folder, settings, self._diverged) if value is None else value


def _trains(config: Mapping[str, Any], name: str) -> bool:
    return "objective" in config["stages"][name]


def _fine_tuning(config: Mapping[str, Any]) -> list[str]:
    """Stages that predict labels; others are pre-training."""
    names = [name for name in config["order"] if _trains(config, name)]
    return [name for name in names if config["stages"][name]["targets"]]


def _identity(config: Mapping[str, Any], name: str, earlier: Mapping[str, str]) -> str:
    """A hash of all that the parameters of a stage depend on."""
    stage = dict(config["stages"][name])
    stage["init"] = {tower: earlier.get(at, at) for tower, at in stage["init"].items() if at}
    content = {
        "stage": stage,
        "models": {tower: config["models"][tower] for tower in stage["towers"]},
        "data": stage_settings.of_data(config["data"]),
        "seed": config["seed"],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without(config: Mapping[str, Any], taken: Mapping[str, str]) -> dict[str, Any]:
    """`config` with origins in other runs for the stages of `taken`."""
    config = copy.deepcopy(dict(config))
    config["order"] = [name for name in config["order"] if name not in taken]
    for name in list(config["order"]):
        stage = config["stages"][name]
        if stage.get("stage") in taken:
            # A verb on a stage, done in the run that trained it.
            config["order"].remove(name)
        if "init" in stage:
            stage["init"] = {tower: taken.get(at, at) for tower, at in stage["init"].items()}
    return {**config, "stages": {name: config["stages"][name] for name in config["order"]}}


def _lists_as_tuples(value: Any) -> Any:
    """As configuration files have them."""
    if isinstance(value, Mapping):
        return {key: _lists_as_tuples(entry) for key, entry in value.items()}
    return tuple(map(_lists_as_tuples, value)) if isinstance(value, list) else value

"""What the result of a stage depends on, as its `stage.json` holds it: settings, and a fingerprint
of the records."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl_jax.data.cohort import Cohort
from mmcl_jax.data.sources.synthetic import Synthetic
from mmcl_jax.retry import say
from mmcl_jax.run_dir import RunDir, differences
from mmcl_jax.stages import Stage, target_labels

# How recordings are read, not which: a stage can go on with other values.
PLACES = ("resident", "cache", "workers")
_MACHINE = (*PLACES, "on_corrupt", "prepare_workers")


def of_stage(
    config: Mapping[str, Any], stage: Stage, started_from: Mapping[str, str]
) -> dict[str, Any]:
    """The settings of a stage, as JSON gives them back.

    Args:
        config: of the experiment.
        started_from: id of the run of each earlier stage that it takes a tower from.
    """
    towers = {tower: config["models"][tower] for tower in stage.config["towers"]}
    own = dict(stage.config)
    if sweep := own.pop("sweep", None):
        # How many members train side by side changes nothing but the speed.
        own["sweep"] = {k: v for k, v in sweep.items() if k != "members"}
    settings = {"stage": own, "models": towers, "data": of_data(config["data"])}
    return plain({**settings, "seed": stage.seed, "started_from": started_from})


def of_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """`config.data` without what changes no result; alike for runs of earlier versions, in which
    some of it could not be chosen."""
    kept = {k: v for k, v in data.items() if k not in _MACHINE}
    if not kept.get("shuffle_labels"):
        kept.pop("shuffle_labels", None)
    if kept.get("path"):
        # Not the cohort that is read.
        kept.pop("synthetic", None)
    elif "synthetic" in kept:
        kept["synthetic"] = {"splits": list(Synthetic.splits), **kept["synthetic"]}
    return kept


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    """One line for each difference of two stages' settings, both as JSON gives them back."""
    # What is computed again instead of kept is the same but for rounding.
    then, now = (_without("rematerialise", {**x, "data": of_data(x["data"])}) for x in (then, now))
    return differences(then, now)


def fingerprint(cohort: Cohort, stage: Stage) -> str:
    """Of what a stage is trained on; labels that it does not predict may be added later."""
    return cohort.fingerprint([label.name for label in target_labels(stage, cohort)])


def check_records(run: RunDir, stages: Sequence[Stage], cohort: Cohort, force: bool) -> None:
    """Raises ValueError where a stage was begun when the cohort had other records or labels: what
    that one was trained on, another one may be tested on now. With `force` it says so only."""
    for stage in stages:
        file = run.stage(stage.name) / "stage.json"
        # Stages of earlier versions do not have it.
        before = json.loads(file.read_text()).get("cohort") if file.is_file() else None
        if before is None or before == fingerprint(cohort, stage):
            continue
        found = (
            f"{cohort.path} has other records, splits or labels than when stage {stage.name} of "
            f"{run.path} was begun"
        )
        if not force:
            raise ValueError(
                f"{found}. Use a new --workdir, delete {file.parent} to run it again, or keep "
                "what is there with --force_config of mmcl_jax.main or mmcl_jax.paper"
            )
        say(f"forced: {found}")


def _without(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without(name, entry) for key, entry in value.items() if key != name}


def plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value

"""A setting of pre-training that is chosen on the validation split, and then stays.

FOLDER/<value>/     one run per value, up to the stage
FOLDER/choice.json  what was chosen, and the validation metric of each value
"""

import json
import math
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from mmcl_jax.run_dir import RunDir, differences, write_atomically

FILE = "choice.json"


class NotMade(ValueError):
    """A choice that cannot be made: a value is not trained, or none could be."""


def made(folder: pathlib.Path, settings: Mapping[str, Any]) -> Any:
    """The value that was chosen, None where that is still to be done.

    Raises:
        ValueError: it was chosen among other values.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    if lines := differences(content["among"], _asked(settings)):
        raise ValueError(
            f"{file} was made among others: {'; '.join(lines)}. Delete it to choose anew"
        )
    return content["chosen"]


def make(
    folder: pathlib.Path, settings: Mapping[str, Any], diverged: Collection[pathlib.Path]
) -> Any:
    """Chooses the value with the best validation metric of its stage, and writes it down.

    Args:
        folder: of the choice.
        settings: `stage`, `field` and `values`.
        diverged: runs whose loss was no number; they are not chosen.

    Raises:
        NotMade: a run is neither finished nor diverged, or all diverged.
    """
    found: dict[str, float | None] = {}
    metric = ""
    for value in settings["values"]:
        run = folder / f"{value:g}"
        done = RunDir(run).done(settings["stage"])
        if done is None and run not in diverged:
            raise NotMade(f"{folder / FILE} needs stage {settings['stage']} of {run}, not done")
        found[f"{value:g}"] = done["best"] if done else None
        metric = done["select"] if done else metric
    sign = -1 if metric.endswith("loss") else 1
    scores = {v: sign * found[f"{v:g}"] for v in settings["values"] if _finite(found[f"{v:g}"])}
    if not scores:
        raise NotMade(f"{folder / FILE}: the loss of every run was no number; other values needed")
    chosen = max(scores, key=scores.get)
    content = {"chosen": chosen, "select": metric, "found": found, "among": _asked(settings)}
    write_atomically(folder / FILE, json.dumps(content, indent=2) + "\n")
    values = ", ".join(f"{k}: {'none' if v is None else f'{v:.4f}'}" for k, v in found.items())
    print(
        f"=== {settings['stage']}.{settings['field']} {chosen:g} by {metric} ({values})", flush=True
    )
    return chosen


def put(config: Mapping[str, Any], settings: Mapping[str, Any], value: Any) -> None:
    """Sets the field of a configuration that the choice is about.

    Raises:
        ValueError: there is no such field.
    """
    place = config["stages"][settings["stage"]]
    *path, last = settings["field"].split(".")
    for name in (*path, last):
        if name not in place:
            raise ValueError(
                f"a choice is about {settings['field']} of stage {settings['stage']}, where there "
                f"is no {name}; there is {', '.join(place)}"
            )
        if name != last:
            place = place[name]
    place[last] = value


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("stage", "field", "values")}


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)

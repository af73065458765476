"""What the result of a stage depends on in the `data` of its configuration, and how two stages
differ in their settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmcl_jax.data.sources.synthetic import Synthetic
from mmcl_jax.run_dir import differences

# How recordings are read, not which: a stage can go on with other values.
PLACES = ("resident", "cache", "workers")
_MACHINE = (*PLACES, "on_corrupt", "prepare_workers")


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
    return differences(*({**x, "data": of_data(x["data"])} for x in (then, now)))

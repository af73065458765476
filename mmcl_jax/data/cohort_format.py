"""What writing and opening a cohort agree on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FORMAT = 1  # version of the layout
MARKER = "cohort.json"
INDEX = "index.npz"
COLUMNS = ("record", "subject", "has_ecg", "has_cmr", "labels")


def settings_hash(settings: Mapping[str, Any]) -> str:
    """sha256 of the settings as JSON with sorted keys and no spaces."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as JSON gives them back: tuples are lists, keys are strings."""
    return json.loads(json.dumps(dict(settings), allow_nan=False))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by their path, such as 'ecg.clip'."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

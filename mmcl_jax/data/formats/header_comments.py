"""Age and sex in the comments of WFDB headers, which have no fixed form."""

import re
from collections.abc import Sequence

from mmcl_jax.data.targets.labels import DEMOGRAPHICS, Label

LABELS: tuple[Label, ...] = tuple(label for label in DEMOGRAPHICS if label.name in ("age", "sex"))


def demographics(comments: Sequence[str]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Age and sex, absent where the comments do not tell, and remarks on values left out.

    Read are 'Age: 56', 'age: 81', '<age>: 65 <sex>: F' and 'Sex: Male', whatever the case.
    """
    values: dict[str, float] = {}
    flags = []
    for name, read in (("age", _age), ("sex", _sex)):
        text = comment(comments, name)
        if text is None or text.lower() in _UNKNOWN:
            continue
        value = read(text)
        if value is None:
            flags.append(f"{name} left out: {text[:40]!r} in the header")
        else:
            values[name] = value
    return values, tuple(flags)


def comment(comments: Sequence[str], name: str) -> str | None:
    """What follows 'name:' in the comments up to the next '<', None when there is no such one."""
    pattern = re.compile(rf"(?:^|<)\s*{re.escape(name)}\s*>?\s*:([^<]*)", re.IGNORECASE)
    for line in comments:
        if found := pattern.search(line):
            return found[1].strip()
    return None


_UNKNOWN = ("", "nan", "n/a", "na", "unknown", "?", "-")
_OLDEST = 120  # years


def _age(text: str) -> float | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:y|years?)?", text, re.IGNORECASE)
    return float(match[1]) if match and float(match[1]) <= _OLDEST else None


def _sex(text: str) -> float | None:
    return {"male": 1.0, "m": 1.0, "female": 0.0, "f": 0.0}.get(text.lower())

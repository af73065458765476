"""Diseases as sets of ICD-10 codes, and whether a list of diagnoses shows them.

A disease is given by prefixes (`I48`, `I251`) and ranges of three-character categories (`I20-I25`,
both ends included). Dots in codes are optional. Paper IV-B: CAD, AF and DM count whenever they were
diagnosed, before or after the visit.
"""

import dataclasses
import datetime
import math
import os
import re
import tomllib
from collections.abc import Sequence

from mmcl_jax.data.targets import labels
from mmcl_jax.data.targets.labels import Label

PERIODS = ("any", "before", "after")


@dataclasses.dataclass(frozen=True)
class Disease:
    """A disease and when its diagnosis counts.

    Attributes:
        label: the binary label of the cohort.
        codes: prefixes and ranges as they were given.
        when: 'any' date; 'before' the visit, its day included; 'after' it, where people diagnosed
            before have no label.
    """

    label: Label
    codes: tuple[str, ...]
    when: str = "any"

    def __post_init__(self):
        if not self.codes:
            raise ValueError(f"disease {self.label.name!r} has no codes")
        for text in self.codes:
            _check_pattern(self.label.name, text)
        if self.when not in PERIODS:
            raise ValueError(
                f"disease {self.label.name!r}: when is {self.when!r}, "
                f"expected one of {', '.join(PERIODS)}"
            )

    def includes(self, code: str) -> bool:
        """Whether a code as `normalise` returns it belongs to the disease."""
        return any(_matches(code, text) for text in self.codes)

    def value(
        self,
        codes: Sequence[str],
        dates: Sequence[datetime.date | None] = (),
        visit: datetime.date | None = None,
    ) -> float:
        """The label of a person: 1 diagnosed, 0 not, NaN when it cannot be told.

        Args:
            codes: diagnoses as `normalise` returns them.
            dates: first date of each diagnosis, None where unknown; not needed for 'any'.
            visit: date of the examination; not needed for 'any'.
        """
        found = [index for index, code in enumerate(codes) if self.includes(code)]
        if self.when == "any" or not found:
            return float(bool(found))
        known = [dates[index] for index in found if index < len(dates)]
        if visit is None or len(known) < len(found) or None in known:
            return math.nan
        before = min(known) <= visit
        if self.when == "before":
            return float(before)
        return math.nan if before else 1.0


def normalise(text: str) -> str:
    """The code at the start of a text, without its dot: 'I25.1 Atherosclerotic ...' is 'I251'.

    Raises:
        ValueError: the text does not start with an ICD-10 code.
    """
    if match := _CODE.match(text.strip().upper()):
        return match["category"] + match["rest"]
    raise ValueError(f"{text[:40]!r} is no ICD-10 code")


def read_definitions(path: str | os.PathLike) -> tuple[Disease, ...]:
    """Diseases of a TOML file, a table for each:

        [HF]
        codes = ["I50", "I11.0", "I42-I43"]
        description = "heart failure"    # optional
        when = "any"                     # optional: "any", "before" or "after" the visit

    Raises:
        FileNotFoundError: the file is absent.
        ValueError: it is no TOML, holds no disease, or a definition cannot be used.
    """
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is absent; expected the definitions of diseases") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable TOML: {error}") from error
    if not tables:
        raise ValueError(f"{path}: holds no disease; expected tables such as [CAD]")
    try:
        return tuple(_disease(name, table) for name, table in tables.items())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


_CODE = re.compile(r"(?P<category>[A-Z][0-9]{2})\.?(?P<rest>[0-9A-Z]{0,4})(?![0-9A-Z])")
_PREFIX = re.compile(r"[A-Z][0-9]{2}(\.?[0-9A-Z]{1,4})?")
_RANGE = re.compile(r"(?P<first>[A-Z][0-9]{2})-(?P<last>[A-Z][0-9]{2})")
# Names that labels of the same source have already.
_TAKEN = frozenset(label.name for label in labels.PHENOTYPES + labels.DEMOGRAPHICS)


def _check_pattern(disease: str, text: str) -> None:
    span = _RANGE.fullmatch(text)
    if span and span["first"] > span["last"]:
        raise ValueError(f"disease {disease!r}: the range {text!r} ends before it starts")
    if not span and not _PREFIX.fullmatch(text):
        raise ValueError(
            f"disease {disease!r}: {text!r} is neither the start of an ICD-10 code of at least "
            "three characters ('I48', 'I25.1') nor a range of such categories ('I20-I25')"
        )


def _matches(code: str, text: str) -> bool:
    if span := _RANGE.fullmatch(text):
        return span["first"] <= code[:3] <= span["last"]
    return code.startswith(text.replace(".", ""))


def _disease(name: str, table: object) -> Disease:
    if not isinstance(table, dict):
        raise ValueError(f"{name!r} is {table!r}, expected a table such as [{name}]")
    if unknown := sorted(set(table) - {"codes", "description", "when"}):
        raise ValueError(
            f"disease {name!r}: unknown entries {', '.join(unknown)}, "
            "expected codes, description and when"
        )
    if name in _TAKEN:
        raise ValueError(f"disease {name!r}: another label has that name; choose another one")
    codes = table.get("codes")
    if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
        raise ValueError(
            f'disease {name!r}: codes is {codes!r}, expected a list such as ["I20-I25"]'
        )
    description, when = table.get("description", name), table.get("when", "any")
    if not isinstance(description, str):
        raise ValueError(f"disease {name!r}: description is {description!r}, expected a text")
    codes = tuple(code.strip().upper() for code in codes)
    period = "" if when == "any" else f", diagnosed {when} the visit"
    text = f"{description} (ICD-10 {', '.join(codes)}{period})"
    return Disease(Label(name, "binary", "disease", "", text), codes, when)


# Those of the paper.
DISEASES = tuple(
    Disease(label, codes)
    for label, codes in zip(labels.DISEASES, (("I20-I25",), ("I48",), ("E10-E14",)), strict=True)
)

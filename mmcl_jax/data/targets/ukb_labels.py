"""Labels of UK Biobank participants: the fields they come from and the values that are possible.

Values of a visit come from that visit alone: who was weighed at the first assessment and scanned at
the imaging visit has no weight at the imaging visit, unless it was measured there too.
"""

import dataclasses
import datetime
import itertools
import math
from collections.abc import Collection, Sequence

from mmcl_jax.data.formats.ukb_table import Row, UkbTable
from mmcl_jax.data.targets import icd10, labels
from mmcl_jax.data.targets.icd10 import Disease
from mmcl_jax.data.targets.labels import Label

GROUPS = ("diseases", "demographics", "phenotypes")


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number of the table.

    Attributes:
        label: what it is called here; the units are the same.
        field: its number in UK Biobank.
        low, high: what is possible; a value outside is an error of the table, e.g. swapped columns.
        per_visit: whether it has an instance for every visit.
    """

    label: Label
    field: int
    low: float
    high: float
    per_visit: bool = True


class UkbLabels:
    """The labels that were asked for, and how to find them in a row.

    Args:
        groups: some of `GROUPS`.
        diseases: definitions for the group 'diseases'.
    """

    def __init__(
        self,
        groups: Sequence[str] = GROUPS,
        diseases: Sequence[Disease] = icd10.DISEASES,
    ):
        if unknown := [group for group in groups if group not in GROUPS]:
            raise ValueError(
                f"labels {', '.join(unknown)}: unknown, expected some of {', '.join(GROUPS)}"
            )
        self._diseases = tuple(diseases) if "diseases" in groups else ()
        self._quantities = PHENOTYPES if "phenotypes" in groups else ()
        self._quantities += DEMOGRAPHICS if "demographics" in groups else ()
        quantities = tuple(quantity.label for quantity in self._quantities)
        self.labels = tuple(disease.label for disease in self._diseases) + quantities
        self._dated = any(disease.when != "any" for disease in self._diseases)

    def fields(self, visits: Collection[int]) -> set[tuple[int, int]]:
        """Pairs of field and instance that the labels of these visits need."""
        pairs = {(q.field, v if q.per_visit else 0) for q in self._quantities for v in visits}
        if self._diseases:
            pairs.add((CODES, 0))
        if self._dated:
            pairs |= {(DATES, 0)} | {(VISIT_DATE, visit) for visit in visits}
        return pairs

    def check(self, table: UkbTable, visits: Collection[int]) -> None:
        """Raises ValueError naming the fields that the table lacks at every one of the visits."""
        needed: dict[int, set[int]] = {}
        for field, instance in self.fields(visits):
            needed.setdefault(field, set()).add(instance)
        missing = sorted(f for f, instances in needed.items() if not instances & table.instances(f))
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            wanted = ", ".join(sorted({str(i) for f in missing for i in needed[f]}))
            raise ValueError(
                f"{table.path}: {len(missing)} fields have no column for instance {wanted}: "
                f"{shown}. Export them too, or ask for other labels (--labels): 'diseases' needs "
                f"{CODES}, 'demographics' {_listed(DEMOGRAPHICS)}, 'phenotypes' 24100-24109 and "
                "24124-24174"
            )

    def values(self, row: Row, visit: int) -> dict[str, float]:
        """The known labels of a participant at a visit.

        Raises:
            ValueError: a cell holds something impossible; the message names it.
        """
        found = {}
        for quantity in self._quantities:
            instance = visit if quantity.per_visit else 0
            if cells := row.cells.get((quantity.field, instance)):
                found[quantity.label.name] = _quantity(quantity, instance, cells)
        for larger, smaller in (("LVEDV", "LVESV"), ("RVEDV", "RVESV")):
            if larger in found and smaller in found and found[larger] < found[smaller]:
                raise ValueError(
                    f"{smaller} is {found[smaller]:g} mL, more than {larger} with "
                    f"{found[larger]:g} mL; are the columns swapped?"
                )
        if self._diseases:
            codes, dates, day = self._diagnoses(row, visit)
            for disease in self._diseases:
                value = disease.value(codes, dates, day)
                if not math.isnan(value):
                    found[disease.label.name] = value
        return found

    def _diagnoses(
        self, row: Row, visit: int
    ) -> tuple[list[str], list[datetime.date | None], datetime.date | None]:
        """Codes, the first date of each, and the date of the visit; dates only where needed."""
        texts = row.cells.get((CODES, 0), ())
        codes = [_code(text) for text in texts if text]
        if not self._dated:
            return codes, [], None
        dates = []
        for code, date in itertools.zip_longest(texts, row.cells.get((DATES, 0), ()), fillvalue=""):
            if code:
                dates.append(_date(date, DATES))
            elif date:
                raise ValueError(
                    f"dates (field {DATES}): {date!r} belongs to no diagnosis (field {CODES})"
                )
        return codes, dates, _date(row.cells.get((VISIT_DATE, visit), ("",))[0], VISIT_DATE)


CODES, DATES, VISIT_DATE = 41270, 41280, 53


def _phenotypes() -> tuple[Quantity, ...]:
    # 24110-24123 are of the atria and the aorta.
    fields = (*range(24100, 24110), *range(24124, 24175))
    return tuple(
        Quantity(label, field, *labels.limits(label))
        for label, field in zip(labels.PHENOTYPES, fields, strict=True)
    )


PHENOTYPES = _phenotypes()
_DEMOGRAPHIC_FIELDS = {
    "age": (21003, 18, 120),
    "sex": (31, 0, 1, False),
    "weight": (21002, 20, 400),
    "height": (50, 100, 250),
}
DEMOGRAPHICS = tuple(
    Quantity(label, *_DEMOGRAPHIC_FIELDS[label.name]) for label in labels.DEMOGRAPHICS
)
# Exports with the meaning of codes instead of the codes.
_SEX = {"female": 0.0, "male": 1.0}


def _quantity(quantity: Quantity, instance: int, cells: Sequence[str]) -> float:
    text = cells[0]
    try:
        value = _SEX.get(text.lower()) if quantity.label.name == "sex" else None
        value = float(text) if value is None else value
    except ValueError:
        value = float("nan")
    whole = quantity.label.kind != "binary" or value in (0, 1)
    if len(cells) > 1 or not (quantity.low <= value <= quantity.high) or not whole:
        expected = f"a number from {quantity.low:g} to {quantity.high:g} {quantity.label.unit}"
        if quantity.label.kind == "binary":
            expected = "0 or 1"
        raise ValueError(
            f"{quantity.label.name} (field {quantity.field}, instance {instance}) is "
            f"{' | '.join(cells)[:40]!r}, expected {expected.strip()}"
        )
    return value


def _code(text: str) -> str:
    try:
        return icd10.normalise(text)
    except ValueError as error:
        raise ValueError(f"diagnoses (field {CODES}): {error}, expected one such as I251") from None


def _date(text: str, field: int) -> datetime.date | None:
    if not text:
        return None
    try:
        return datetime.date.fromisoformat(text[:10])
    except ValueError:
        raise ValueError(
            f"dates (field {field}): {text[:40]!r} is no date, expected one such as 2015-03-02"
        ) from None


def _listed(quantities: Sequence[Quantity]) -> str:
    return ", ".join(str(quantity.field) for quantity in quantities)

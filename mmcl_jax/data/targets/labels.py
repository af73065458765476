"""What can be predicted: the diseases, the 61 CMR phenotypes and the demographics, by name.

Paper section IV-B. The phenotypes are those of the UK Biobank short-axis pipeline. Wall thickness
and strain have 17 values each: the 16 segments of the American Heart Association (AHA, without the
apex), then their mean over the whole ring, `global`. Strain is in per cent of the end-diastolic
length, although the paper prints mm.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmcl_jax.csv_text import neutral

KINDS = ("binary", "multiclass", "regression")


@dataclasses.dataclass(frozen=True)
class Label:
    """One column of the labels of a cohort.

    Attributes:
        name: unique in a cohort, also the column name in every table and report.
        kind: 'binary' (0 or 1), 'multiclass' (number of one of `classes`, counted from 0) or
            'regression' (a number in `unit`).
        group: labels of one group are reported together, e.g. 'LV' or 'disease'.
        unit: unit of a regression label; '' for any other or a pure number.
        description: one line for people who read a report.
        classes: names of the classes of a multi-class label.
    """

    name: str
    kind: str
    group: str
    unit: str = ""
    description: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.name:
            raise ValueError("a label needs a name, found ''")
        # Names become parts of file names.
        if self.name[0] in "/\\" or ".." in re.split(r"[/\\]", self.name):
            raise ValueError(f"label {self.name!r}: is a path out of the folder; rename it")
        # And of the CSV files of results, which are opened in spreadsheets.
        if neutral(self.name) != self.name:
            raise ValueError(
                f"label {self.name!r}: begins with {self.name[0]!r} as a spreadsheet's formula "
                "does; rename it"
            )
        if self.kind not in KINDS:
            raise ValueError(
                f"label {self.name!r}: kind is {self.kind!r}, expected one of {', '.join(KINDS)}"
            )
        if self.kind != "multiclass" and self.classes:
            raise ValueError(f"label {self.name!r} is {self.kind}, so it has no classes")
        if self.kind == "multiclass" and (
            len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)
        ):
            raise ValueError(
                f"label {self.name!r}: classes are {', '.join(self.classes) or 'none'}, expected "
                "at least two different ones"
            )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the columns of a prediction: one, or for a multi-class label one per class."""
        if self.kind != "multiclass":
            return (self.name,)
        return tuple(f"{self.name}: {name}" for name in self.classes)


def limits(label: Label) -> tuple[float, float]:
    """Least and largest value that can be true; infinite for labels that are not known here.

    Far wider than what a heart can be: they find swapped columns and wrong units, not outliers.
    """
    if label not in PHENOTYPES + DEMOGRAPHICS:
        return -math.inf, math.inf
    return _LIMITS.get(label.name) or _LIMITS_IN[label.unit]


def to_json(labels: Iterable[Label]) -> list[dict[str, Any]]:
    """Labels as a list of plain dictionaries, ready for `json.dumps`."""
    records = []
    for label in labels:
        record = dataclasses.asdict(label)
        classes = record.pop("classes")
        records.append({**record, "classes": list(classes)} if classes else record)
    return records


def from_json(records: Sequence[Mapping[str, Any]]) -> tuple[Label, ...]:
    """Inverse of `to_json`.

    Raises:
        ValueError: a record lacks a field, has an unknown one, or two records share a name.
    """
    fields = {field.name for field in dataclasses.fields(Label)}
    labels = []
    for position, record in enumerate(records):
        if unknown := sorted(set(record) - fields):
            raise ValueError(
                f"label {position}: unknown fields {', '.join(unknown)}; "
                f"the fields are {', '.join(sorted(fields))}"
            )
        if missing := sorted({"name", "kind", "group"} - set(record)):
            raise ValueError(f"label {position}: fields {', '.join(missing)} are missing")
        labels.append(Label(**{**record, "classes": tuple(record.get("classes", ()))}))
    names = [label.name for label in labels]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"labels with the same name: {', '.join(repeated)}; names must be unique")
    return tuple(labels)


DISEASES = (
    Label("CAD", "binary", "disease", "", "coronary artery disease (ICD-10 I20-I25)"),
    Label("AF", "binary", "disease", "", "atrial fibrillation (ICD-10 I48)"),
    Label("DM", "binary", "disease", "", "diabetes mellitus (ICD-10 E10-E14)"),
)

DEMOGRAPHICS = (
    Label("age", "regression", "demographics", "years", "age at the examination"),
    Label("sex", "binary", "demographics", "", "1 male, 0 female"),
    Label("weight", "regression", "demographics", "kg", "body weight"),
    Label("height", "regression", "demographics", "cm", "standing height"),
)

# AHA segments 1 to 16, counted from the anterior wall: basal, mid-cavity, apical.
AHA_SEGMENTS = (
    "basal anterior",
    "basal anteroseptal",
    "basal inferoseptal",
    "basal inferior",
    "basal inferolateral",
    "basal anterolateral",
    "mid anterior",
    "mid anteroseptal",
    "mid inferoseptal",
    "mid inferior",
    "mid inferolateral",
    "mid anterolateral",
    "apical anterior",
    "apical septal",
    "apical inferior",
    "apical lateral",
)


def _segmental(prefix: str, group: str, unit: str, description: str) -> tuple[Label, ...]:
    """17 labels: one per AHA segment, then the global one."""
    labels = [
        Label(f"{prefix}_{number}", "regression", group, unit, f"{description}, {place}")
        for number, place in enumerate(AHA_SEGMENTS, start=1)
    ]
    labels.append(Label(f"{prefix}_global", "regression", group, unit, f"{description}, global"))
    return tuple(labels)


PHENOTYPES = (
    Label("LVEDV", "regression", "LV", "mL", "left ventricular end-diastolic volume"),
    Label("LVESV", "regression", "LV", "mL", "left ventricular end-systolic volume"),
    Label("LVSV", "regression", "LV", "mL", "left ventricular stroke volume"),
    Label("LVEF", "regression", "LV", "%", "left ventricular ejection fraction"),
    Label("LVCO", "regression", "LV", "L/min", "left ventricular cardiac output"),
    Label("LVM", "regression", "LV", "g", "left ventricular myocardial mass"),
    Label("RVEDV", "regression", "RV", "mL", "right ventricular end-diastolic volume"),
    Label("RVESV", "regression", "RV", "mL", "right ventricular end-systolic volume"),
    Label("RVSV", "regression", "RV", "mL", "right ventricular stroke volume"),
    Label("RVEF", "regression", "RV", "%", "right ventricular ejection fraction"),
    *_segmental("WT", "WT", "mm", "end-diastolic wall thickness"),
    *_segmental("Ecc", "Ecc", "%", "peak circumferential strain"),
    *_segmental("Err", "Err", "%", "peak radial strain"),
)

_LIMITS_IN = {"mL": (0, 1000), "g": (0, 1000), "L/min": (0, 50), "mm": (0, 60), "%": (-200, 400)}
_LIMITS = {"LVEF": (0, 100), "RVEF": (0, 100)}
_LIMITS |= {"age": (0, 120), "sex": (0, 1), "weight": (1, 400), "height": (30, 250)}

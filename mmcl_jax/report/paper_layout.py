"""What the tables and figures of the paper hold: methods, rows, columns, published numbers.

A method is known by `name` in the configuration of its run. The numbers are in `published.csv`, as
the paper prints them (Turgut et al., arXiv 2308.05764v1), each with its table; what is not there is
an empty cell.
"""

import csv
import dataclasses
import importlib.resources

from mmcl_jax.data.targets.labels import DISEASES, PHENOTYPES

DISEASE_NAMES = tuple(label.name for label in DISEASES)
GROUPS = tuple(dict.fromkeys(label.group for label in PHENOTYPES))
OURS = "mmcl"

# In the order in which they are listed wherever all of them are.
METHODS = {
    "tabular": "Tabular (XGBoost)",
    "supervised": "Supervised ViT",
    "simclr": "SimCLR",
    "clocs": "CLOCS",
    "byol": "BYOL",
    "barlow_twins": "Barlow Twins",
    "mae": "MDM (MAE)",
    "mmcl_wo_mdm": "MMCL w/o MDM",
    "mmcl": "MMCL (ours)",
    "cmr_supervised": "CMR: supervised ResNet",
    "cmr_mmcl_wo_mdm": "CMR: MMCL w/o MDM",
    "cmr_mmcl": "CMR: MMCL (ours)",
}

# The paper does not name its 20 phenotypes: all of the ventricles, then walls and their strains.
FIGURE_4 = (
    *(label.name for label in PHENOTYPES if label.group in ("LV", "RV")),
    *("WT_global", "WT_2", "WT_8", "WT_14"),
    *("Ecc_global", "Ecc_2", "Ecc_8"),
    *("Err_global", "Err_2", "Err_8"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table; `marks` are the crosses and ticks of its pre-training columns.

    A reference is shown, and not ranked.
    """

    method: str
    modality: str
    model: str
    marks: tuple[bool, ...] = ()
    reference: bool = False


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        metric: `auroc`, printed in per cent, or `r`.
        targets: its columns: diseases, or groups of phenotypes whose values are averaged.
        marks: names of the pre-training columns.
        ours: the method that the others are compared with.
    """

    number: str
    title: str
    metric: str
    targets: tuple[str, ...]
    rows: tuple[Row, ...]
    marks: tuple[str, ...] = ()
    ours: str = OURS


_PRE_TRAINING = ("MDM", "MMCL")

TABLES = (
    PaperTable(
        "I",
        "Diagnostic modalities for the risk prediction of cardiovascular diseases",
        "auroc",
        DISEASE_NAMES,
        (
            Row("supervised", "ECG", "Supervised ViT"),
            Row("tabular", "Tabular", "XGBoost"),
            Row("cmr_supervised", "CMR", "Supervised ResNet"),
            Row("mmcl", "ECG", "MMCL (ours)"),
        ),
    ),
    PaperTable(
        "II",
        "Supervised and self-supervised baselines for the risk prediction from ECG",
        "auroc",
        DISEASE_NAMES,
        (
            Row("supervised", "ECG", "Supervised ViT"),
            Row("simclr", "ECG", "SimCLR"),
            Row("clocs", "ECG", "CLOCS"),
            Row("byol", "ECG", "BYOL"),
            Row("barlow_twins", "ECG", "BarlowTwins"),
            Row("mae", "ECG", "MAE"),
            Row("mmcl", "ECG", "MMCL (ours)"),
        ),
    ),
    PaperTable(
        "III",
        "Pre-training strategies for the risk prediction from ECG",
        "auroc",
        DISEASE_NAMES,
        (
            Row("supervised", "ECG", "Supervised ViT", (False, False)),
            Row("mae", "ECG", "MDM", (True, False)),
            Row("mmcl_wo_mdm", "ECG", "MMCL w/o MDM", (False, True)),
            Row("mmcl", "ECG", "MMCL (ours)", (True, True)),
        ),
        _PRE_TRAINING,
    ),
    PaperTable(
        "IV",
        "Pre-training strategies for predicting CMR imaging phenotypes from ECG",
        "r",
        GROUPS,
        (
            Row("supervised", "ECG", "Supervised ViT", (False, False)),
            Row("mae", "ECG", "MDM", (True, False)),
            Row("mmcl_wo_mdm", "ECG", "MMCL w/o MDM", (False, True)),
            Row("mmcl", "ECG", "MMCL (ours)", (True, True)),
            Row("cmr_supervised", "CMR ref.", "Supervised ResNet", (False, False), True),
        ),
        _PRE_TRAINING,
    ),
    PaperTable(
        "V",
        "Pre-training strategies for the risk prediction from CMR images",
        "auroc",
        DISEASE_NAMES,
        (
            Row("cmr_supervised", "CMR", "Supervised ResNet", (False, False)),
            Row("cmr_mmcl_wo_mdm", "CMR", "MMCL w/o MDM", (False, True)),
            Row("cmr_mmcl", "CMR", "MMCL (ours)", (True, True)),
        ),
        _PRE_TRAINING,
        ours="cmr_mmcl",
    ),
)


def published() -> dict[tuple[str, str, str], tuple[str, str]]:
    """(table, method, target) -> (mean, standard deviation or '') as printed."""
    text = importlib.resources.files(__package__).joinpath("published.csv").read_text("utf-8")
    return {
        (row["table"], row["method"], row["target"]): (row["mean"], row["sd"])
        for row in csv.DictReader(text.splitlines())
    }


def method_name(method: str) -> str:
    """As it is written in figures and lists."""
    return METHODS.get(method, method)


def in_order(methods) -> list[str]:
    """The paper's methods in the order of `METHODS`, then others by name."""
    place = {name: number for number, name in enumerate(METHODS)}
    return sorted(set(methods), key=lambda name: (place.get(name, len(place)), name))

"""The summary that the preparation prints: refusals by reason, remarks by kind."""

import csv
import pathlib

import numpy as np
from tiny_source import TinySource

from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.preparing.loading import Refused
from mmcl_jax.data.preparing.preparation_report import Report


def summary(refused=(), remarks=()):
    return str(
        Report(
            path=pathlib.Path("c"),
            source="tiny",
            read=1 + len(refused),
            refused=tuple(Refused(f"r{n}", "", reason) for n, reason in enumerate(refused)),
            flagged=tuple((f"r{n}", remark) for n, remark in enumerate(remarks)),
            splits={"train": 1, "val": 0, "test": 0},
            modalities={"ECG": 1, "CMR": 0, "both": 0},
            labels=(),
            values={"train": np.zeros((1, 0))},
        )
    ).splitlines()


def test_remarks_are_counted_by_kind():
    lines = summary(
        remarks=["saturated: V5", "few slices: 3", "saturated: V6", "a flat lead", "saturated: V6"]
        + ["few slices: 3"]
    )
    start = lines.index("flagged, used (flagged.csv):")
    assert lines[start + 1 : -1] == [
        "  3 x saturated, e.g. V6",
        "  2 x few slices: 3",
        "  1 x a flat lead",
    ]


def test_the_commonest_ten_reasons_are_shown():
    reasons = ["lead V6 is absent"] * 3 + [f"reason {number}" for number in range(11)]
    lines = summary(refused=reasons)
    start = lines.index("refused (refused.csv):")
    assert lines[start + 1] == "  3 x lead V6 is absent"
    assert lines[start + 10 : -1] == ["  1 x reason 8", "  other reasons: 2"]
    assert "flagged, used (flagged.csv):" not in lines


def test_nothing_to_remark():
    assert summary() == [
        "c: cohort from source 'tiny'",
        "read 1, used 1, refused 0",
        "records by split: train 1, val 0, test 0",
        "records with: ECG 1, CMR 0, both 0",
        "the source has no labels",
    ]


def test_a_file_name_is_no_formula_of_a_spreadsheet(tmp_path):
    source = TinySource(refused=(1,), changes=((2, "record", "=1+1"), (2, "flags", ("odd",))))
    cohorts.write(source, tmp_path / "c", workers=0, progress=False)
    with (tmp_path / "c" / "flagged.csv").open(newline="") as stream:
        assert list(csv.reader(stream))[1:] == [["'=1+1", "odd"]]

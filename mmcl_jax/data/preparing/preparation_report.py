"""What became of every record of a source: the text, refused.csv and flagged.csv of a cohort."""

import collections
import csv
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

import numpy as np
from jaxtyping import Float

from mmcl_jax.csv_text import neutral
from mmcl_jax.data.preparing.loading import Refused
from mmcl_jax.data.targets.label_summary import words
from mmcl_jax.data.targets.labels import Label


@dataclasses.dataclass(frozen=True)
class Report:
    """Outcome of a preparation; `str(report)` is the summary for people.

    Attributes:
        path: folder of the cohort.
        source: name of the source.
        read: number of records that were looked at: used + refused.
        refused: records that could not be used.
        flagged: (record, remark) of records that are used all the same.
        splits: number of records by split.
        modalities: number of records with an ECG, with CMR frames, with both.
        labels: the labels of the cohort.
        values: label values by split, NaN where missing.
    """

    path: pathlib.Path
    source: str
    read: int
    refused: tuple[Refused, ...]
    flagged: tuple[tuple[str, str], ...]
    splits: Mapping[str, int]
    modalities: Mapping[str, int]
    labels: tuple[Label, ...]
    values: Mapping[str, Float[np.ndarray, "n K"]]

    @property
    def used(self) -> int:
        return sum(self.splits.values())

    def __str__(self) -> str:
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        modalities = ", ".join(f"{name} {count:,}" for name, count in self.modalities.items())
        lines = [
            f"{self.path}: cohort from source {self.source!r}",
            f"read {self.read:,}, used {self.used:,}, refused {len(self.refused):,}",
            f"records by split: {splits}",
            f"records with: {modalities}",
        ]
        lines += _reasons("refused (refused.csv)", [entry.reason for entry in self.refused])
        lines += _remarks("flagged, used (flagged.csv)", [remark for _, remark in self.flagged])
        return "\n".join(lines + _label_lines(self.labels, self.values)) + "\n"

    def write_csv(self, folder: pathlib.Path) -> None:
        """Writes refused.csv (record, file, reason) and flagged.csv (record, remark)."""
        tables = {
            "refused.csv": [
                ("record", "file", "reason"),
                *((entry.record, entry.file, entry.reason) for entry in self.refused),
            ],
            "flagged.csv": [("record", "remark"), *self.flagged],
        }
        for name, rows in tables.items():
            with (folder / name).open("w", newline="", encoding="utf-8") as stream:
                write_rows(stream, rows)


def write_rows(stream: TextIO, rows: Iterable[Sequence[str]]) -> None:
    """Writes rows of text as CSV, safe to open in a spreadsheet."""
    csv.writer(stream, lineterminator="\n").writerows(map(neutral, row) for row in rows)


def _reasons(title: str, reasons: Sequence[str], most: int = 10) -> list[str]:
    """The commonest reasons with their counts."""
    counts = collections.Counter(reasons).most_common()
    lines = [f"{title}:"] if counts else []
    lines += [f"  {count:,} x {reason}" for reason, count in counts[:most]]
    if len(counts) > most:
        lines.append(f"  other reasons: {len(counts) - most:,}")
    return lines


def _remarks(title: str, remarks: Sequence[str]) -> list[str]:
    """The remarks 'kind: detail' by kind; where the details differ, the commonest as an example."""
    kinds: dict[str, list[str]] = {}
    for remark in remarks:
        kind, _, detail = remark.partition(": ")
        kinds.setdefault(kind, []).append(detail)
    texts: list[str] = []
    for kind, details in kinds.items():
        detail, count = collections.Counter(details).most_common(1)[0]
        separator = ": " if count == len(details) else ", e.g. "
        texts += [f"{kind}{separator}{detail}" if detail else kind] * len(details)
    return _reasons(title, texts)


def _label_lines(
    labels: Sequence[Label], values: Mapping[str, Float[np.ndarray, "n K"]]
) -> list[str]:
    """One line per label: prevalence or mean and standard deviation by split, share missing."""
    if not labels:
        return ["the source has no labels"]
    rows = [("label", *values, "missing")]
    for column, label in enumerate(labels):
        cells = [words(label, split[:, column]) for split in values.values()]
        everyone = np.concatenate([split[:, column] for split in values.values()])
        rows.append((label.name, *cells, f"{100 * np.isnan(everyone).mean():.1f} %"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["labels (binary: share of positives; regression: mean, standard deviation):"]
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join(["", name.ljust(widths[0]), *padded]))
    return lines

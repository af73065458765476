"""A cohort: recordings in one form, with their labels and how they were preprocessed.

A folder of ArrayRecord files (a TFDS data set, see `records.py`), and beside them

    cohort.json          labels, splits, files, preprocessing settings and their hash, statistics
    index.npz            a table per split: record, subject, has_ecg, has_cmr, labels
    refused.csv          records that could not be used, with file and reason
    flagged.csv          records that are used but deserve a look
    preview.png          a few records as pictures (drawn by `preparing/cohort_figures.py`)
    prepare_report.html  all of this as a page (of `preparing/preparation_page.py`)

`write` (in `preparing/preparation.py`) makes one, `open_cohort` opens it.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax.data.cohort_format import (
    COLUMNS,
    FORMAT,
    INDEX,
    MARKER,
    flatten,
    plain,
    settings_hash,
)
from mmcl_jax.data.preparing.admission import CohortError
from mmcl_jax.data.preparing.preparation import write
from mmcl_jax.data.record_source import RecordSource
from mmcl_jax.data.records import FIELDS
from mmcl_jax.data.targets import labels as label_lists
from mmcl_jax.data.targets.labels import Label

__all__ = ["Cohort", "CohortError", "check_settings", "open_cohort", "settings_hash", "write"]


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
    """An opened cohort.

    Attributes:
        path: its folder.
        source_name: name of the source that it was prepared from.
        parameters: what the source was told, such as a seed.
        labels: columns of the label table.
        settings: preprocessing settings; cohorts with equal settings fit together.
        settings_hash: sha256 of the settings as canonical JSON.
        splits: number of records by split; every split is listed.
        statistics: mean and standard deviation of the regression labels over the training split,
            in the label's unit; a label that is nowhere known there is absent, and a constant one
            has standard deviation 1.
        shards: 'file', 'records' and 'bytes' of every file, by split.
        leads: what the ECG leads look like in mV, see `LeadSummary.as_dict`; empty where the
            source does not tell.
        tables: see `table`.
        on_corrupt: what `source` does about damaged records: 'stop' or 'skip'.
    """

    path: pathlib.Path
    source_name: str
    parameters: Mapping[str, Any]
    labels: tuple[Label, ...]
    settings: Mapping[str, Any]
    settings_hash: str
    splits: Mapping[str, int]
    statistics: Mapping[str, tuple[float, float]]
    shards: Mapping[str, Sequence[Mapping[str, str | int]]]
    leads: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(repr=False)
    on_corrupt: str = "stop"

    def table(self, split: str) -> dict[str, np.ndarray]:
        """Columns of a split, one row per record, in the order of `source(split)`.

        Returns:
            'record', 'subject' str [n], 'has_ecg', 'has_cmr' bool [n], 'labels' float32 [n, K]
            in the labels' own units, NaN where missing. The arrays are read-only.
        """
        self._check_split(split)
        return dict(self.tables[split])

    def source(self, split: str, fields: Sequence[str] = FIELDS) -> RecordSource:
        """Random access to the records of a split; [i] holds those of `fields` that it has:

        'ecg' float32 [12, 5000], 'cmr' uint8 [210, 210, 3], 'cmr_box' int32 [4].
        """
        self._check_split(split)
        return RecordSource(
            self.path,
            self.shards[split],
            fields,
            names=self.tables[split]["record"],
            on_corrupt=self.on_corrupt,
        )

    def target(self, name: str | Sequence[str]) -> tuple[Label, ...]:
        """Labels by name, by several names, or by the name of a group ('LV').

        Raises:
            ValueError: there is no such label; the message lists what there is.
        """
        by_name = {label.name: label for label in self.labels}
        if isinstance(name, str) and name not in by_name:
            group = tuple(label for label in self.labels if label.group == name)
            if group:
                return group
        names = (name,) if isinstance(name, str) else tuple(name)
        if unknown := [entry for entry in names if entry not in by_name]:
            groups = dict.fromkeys(label.group for label in self.labels)
            raise ValueError(
                f"{self.path}: no label called {', '.join(unknown)}. "
                f"Labels: {', '.join(by_name) or 'none'}. Groups: {', '.join(groups) or 'none'}"
            )
        return tuple(by_name[entry] for entry in names)

    def fingerprint(self, labels: Sequence[str] = ()) -> str:
        """SHA-256 of which records of whom are in which split, and of their values of `labels`."""
        digest = hashlib.sha256()
        columns = [self.labels.index(label) for label in self.target(labels)]
        for split, table in sorted(self.tables.items()):
            names = [split, *labels, *table["record"], *table["subject"]]
            digest.update(json.dumps(names).encode())
            for values in (table["has_ecg"], table["has_cmr"], table["labels"][:, columns]):
                digest.update(values.tobytes())
        return digest.hexdigest()

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise ValueError(
                f"{self.path}: no split called {split!r}, expected {', '.join(self.splits)}"
            )


def open_cohort(path: str | os.PathLike) -> Cohort:
    """Opens a cohort after a check that its files are all there.

    Raises:
        FileNotFoundError: there is no such folder.
        CohortError: it is no cohort, one of another format, a file is missing or damaged, a
            person is in two splits, or the settings were edited.
    """
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no cohort at {path}. Prepare one: "
            f"python -m mmcl_jax.prepare SOURCE --input ... --output {path}"
        )
    try:
        content = json.loads((path / MARKER).read_text(encoding="utf-8"))
        found = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"{path} is not a cohort: {MARKER} is absent or unreadable there. Give the folder "
            "that python -m mmcl_jax.prepare wrote"
        ) from error
    if found != FORMAT:
        raise CohortError(
            f"{path}: cohort of format {found}, this version reads format {FORMAT}; "
            "prepare the cohort again with this version"
        )
    for shard in [shard for shards in content["shards"].values() for shard in shards]:
        file = path / shard["file"]
        if file.parent != path:
            raise CohortError(f"{path / MARKER}: {shard['file']!r} is no file of this folder")
        size = file.stat().st_size if file.is_file() else None
        if size != shard["bytes"]:
            raise CohortError(
                f"{file}: {'missing' if size is None else f'{size:,} bytes'}, expected "
                f"{shard['bytes']:,} bytes; copy the cohort again or prepare it again"
            )
    if settings_hash(content["settings"]) != content["settings_hash"]:
        raise CohortError(
            f"{path / MARKER}: the preprocessing settings do not have the hash that stands beside "
            "them, so they were edited; prepare the cohort again with the settings wanted"
        )
    tables = {split: _read_table(path, split, size) for split, size in content["splits"].items()}
    _check_subjects(path, tables)
    return Cohort(
        path=path,
        source_name=content["source"],
        parameters=content["parameters"],
        labels=label_lists.from_json(content["labels"]),
        settings=content["settings"],
        settings_hash=content["settings_hash"],
        splits=content["splits"],
        statistics={name: tuple(pair) for name, pair in content["statistics"].items()},
        shards=content["shards"],
        leads=content.get("leads", {}),
        tables=tables,
    )


# Says where the preprocessing was done, not how.
_FREE = ("ecg.preprocessed", "cmr.preprocessed")


def check_settings(cohort: Cohort, expected: Mapping[str, Any]) -> None:
    """Raises CohortError naming the preprocessing settings that are not the expected ones.

    Args:
        cohort: the cohort about to be used.
        expected: settings to be found by modality, e.g. those of the cohort that a model was
            trained on. A modality that is not named here, or that the cohort does not have, is
            free; so is where the preprocessing was done (`preprocessed`).
    """
    both = cohort.settings.keys() & expected.keys()
    found, wanted = (
        flatten(plain({modality: settings[modality] for modality in both}))
        for settings in (cohort.settings, expected)
    )
    differences = [
        f"{name}: found {found.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted((found.keys() | wanted.keys()) - {*_FREE})
        if (name in found) != (name in wanted) or found[name] != wanted[name]
    ]
    if differences:
        raise CohortError(
            f"{cohort.path} was preprocessed in another way: {'; '.join(differences)}. Prepare "
            "the cohort again with the expected settings, or train anew on this one"
        )


def _read_table(path: pathlib.Path, split: str, size: int) -> dict[str, np.ndarray]:
    file = path / INDEX
    try:
        with np.load(file, allow_pickle=False) as columns:
            table = {name: columns[f"{split}/{name}"] for name in COLUMNS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CohortError(f"{file}: missing or damaged ({error}); prepare again") from error
    for name, column in table.items():
        if len(column) != size:
            raise CohortError(
                f"{file}: {name} of split {split!r} has {len(column)} rows, expected {size}; "
                "prepare the cohort again"
            )
        column.flags.writeable = False
    return table


def _check_subjects(path: pathlib.Path, tables: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    split_of: dict[str, str] = {}
    for split, table in tables.items():
        people = set(table["subject"].tolist())
        if shared := people & split_of.keys():
            person = min(shared)
            raise CohortError(
                f"{path}: {len(shared)} subjects are in two splits, such as {person} in "
                f"{split_of[person]} and {split}; results would be too good. Prepare it again"
            )
        split_of |= dict.fromkeys(people, split)

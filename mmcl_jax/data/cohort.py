"""A cohort: recordings in one form, with their labels and how they were preprocessed.

A folder of ArrayRecord files (a TFDS data set, see `records.py`), and beside them

    cohort.json    labels, splits, files, preprocessing settings and their hash, statistics
    index.npz      a table per split: record, subject, has_ecg, has_cmr, labels
    refused.csv    records that could not be used, with file and reason
    flagged.csv    records that are used but deserve a look
    preview.png    a few records as pictures (`cohort_figures.py` draws it afterwards)

`write` makes one, `open_cohort` opens it.
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

from mmcl_jax.data import labels as label_lists
from mmcl_jax.data.admission import Admission, CohortError
from mmcl_jax.data.labels import Label
from mmcl_jax.data.loading import Loaded, default_workers, load_in_order
from mmcl_jax.data.preparation_report import Report
from mmcl_jax.data.records import FIELDS, RecordSource, ShardWriter, write_tfds_metadata
from mmcl_jax.data.staging import staged_folder
from mmcl_jax.data.subject import SPLITS, Source
from mmcl_jax.progress import Progress

FORMAT = 1  # version of this layout
_MARKER = "cohort.json"
_COLUMNS = ("record", "subject", "has_ecg", "has_cmr", "labels")


def write(
    source: Source,
    output: str | os.PathLike,
    *,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Report:
    """Prepares every record of a source and writes the cohort.

    The files do not depend on the number of workers. The folder gets its name when it is complete.

    Args:
        source: where the records come from.
        output: folder of the cohort.
        workers: processes that load records; None: one per processor, 0: none, load in this one.
        progress: print how far it has come to stderr.
        overwrite: replace a cohort of this name.

    Raises:
        FileExistsError: `output` exists already.
        CohortError: no record is usable, or a person or an ECG is in two splits.
    """
    workers = default_workers() if workers is None else workers
    with staged_folder(pathlib.Path(output), overwrite=overwrite, marker=_MARKER) as folder:
        admission = Admission()
        writers = {split: ShardWriter(folder, split) for split in SPLITS}
        with Progress(len(source.tasks), enabled=progress) as meter:
            for entry in load_in_order(source, workers):
                if loaded := admission.judge(entry):
                    writers[loaded.split].write(loaded.payload)
                meter.update(admission.read, f"{len(admission.refused):,} refused")
        shards = {split: writer.close() for split, writer in writers.items()}
        if not any(shards.values()):
            reasons = "".join(
                f"\n  {e.file or e.record}: {e.reason}" for e in admission.refused[:5]
            )
            raise CohortError(
                f"source {source.name!r} has no usable record: {admission.read} read, "
                f"{len(admission.refused)} refused{', the first:' if reasons else ''}{reasons}"
            )
        tables = {split: _table(admission.used[split], source.labels) for split in SPLITS}
        has = {
            field: np.concatenate([t[f"has_{field}"] for t in tables.values()])
            for field in ("ecg", "cmr")
        }
        report = Report(
            path=pathlib.Path(output),
            source=source.name,
            read=admission.read,
            refused=tuple(admission.refused),
            flagged=tuple(admission.flagged),
            splits={split: len(rows) for split, rows in admission.used.items()},
            modalities={
                "ECG": int(has["ecg"].sum()),
                "CMR": int(has["cmr"].sum()),
                "both": int((has["ecg"] & has["cmr"]).sum()),
            },
            labels=tuple(source.labels),
            values={split: table["labels"] for split, table in tables.items()},
        )
        _write_beside(folder, source, shards, tables, report)
        write_tfds_metadata(
            folder,
            shards,
            [label.name for label in source.labels],
            description=f"Cohort from source {source.name!r}: ECG, CMR frames, labels.",
            complete=[field for field, present in has.items() if present.all()],
        )
    return report


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
        tables: see `table`.
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
    tables: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(repr=False)

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
        return RecordSource(self.path, self.shards[split], fields)

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

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise ValueError(
                f"{self.path}: no split called {split!r}, expected {', '.join(self.splits)}"
            )


def open_cohort(path: str | os.PathLike) -> Cohort:
    """Opens a cohort after a check that its files are all there.

    Raises:
        FileNotFoundError: there is no such folder.
        CohortError: it is no cohort, one of another format, or a file is missing or damaged.
    """
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no cohort at {path}. Prepare one: "
            f"python -m mmcl_jax.prepare SOURCE --input ... --output {path}"
        )
    try:
        content = json.loads((path / _MARKER).read_text(encoding="utf-8"))
        found = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"{path} is not a cohort: {_MARKER} is absent or unreadable there. Give the folder "
            "that python -m mmcl_jax.prepare wrote"
        ) from error
    if found != FORMAT:
        raise CohortError(
            f"{path}: cohort of format {found}, this version reads format {FORMAT}; "
            "prepare the cohort again with this version"
        )
    for shard in [shard for shards in content["shards"].values() for shard in shards]:
        file = path / shard["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != shard["bytes"]:
            raise CohortError(
                f"{file}: {'missing' if size is None else f'{size:,} bytes'}, expected "
                f"{shard['bytes']:,} bytes; copy the cohort again or prepare it again"
            )
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
        tables={split: _read_table(path, split, size) for split, size in content["splits"].items()},
    )


def check_settings(cohort: Cohort, expected: Mapping[str, Any]) -> None:
    """Raises CohortError naming the preprocessing settings that are not the expected ones.

    Args:
        cohort: the cohort about to be used.
        expected: settings to be found, e.g. those of the cohort that a model was trained on.
            Top-level entries that are not named here are free.
    """
    found = {name: value for name, value in cohort.settings.items() if name in expected}
    found, wanted = _flatten(found), _flatten(_plain(expected))
    differences = [
        f"{name}: found {found.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(found.keys() | wanted.keys())
        if (name in found) != (name in wanted) or found[name] != wanted[name]
    ]
    if differences:
        raise CohortError(
            f"{cohort.path} was preprocessed in another way: {'; '.join(differences)}. Prepare "
            "the cohort again with the expected settings, or train anew on this one"
        )


def settings_hash(settings: Mapping[str, Any]) -> str:
    """sha256 of the settings as JSON with sorted keys and no spaces."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _table(rows: Sequence[Loaded], labels: Sequence[Label]) -> dict[str, np.ndarray]:
    values = np.array([row.labels for row in rows], np.float32)
    return {
        "record": np.array([row.record for row in rows], np.str_),
        "subject": np.array([row.subject for row in rows], np.str_),
        "has_ecg": np.array([row.has_ecg for row in rows], bool),
        "has_cmr": np.array([row.has_cmr for row in rows], bool),
        "labels": values.reshape(len(rows), len(labels)),
    }


def _write_beside(folder, source: Source, shards, tables, report: Report) -> None:
    """Writes everything that is not a record: cohort.json, index.npz, the CSV files."""
    settings = _plain(source.settings)
    content = {
        "format": FORMAT,
        "source": source.name,
        "labels": label_lists.to_json(source.labels),
        "parameters": _plain(source.parameters),
        "settings": settings,
        "settings_hash": settings_hash(settings),
        "splits": report.splits,
        "statistics": _statistics(source.labels, tables["train"]["labels"]),
        "read": report.read,
        "refused": len(report.refused),
        "flagged": len(report.flagged),
        "shards": shards,
    }
    (folder / _MARKER).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    columns = {f"{s}/{name}": array for s, table in tables.items() for name, array in table.items()}
    np.savez(folder / "index.npz", **columns)
    report.write_csv(folder)


def _statistics(labels: Sequence[Label], values: np.ndarray) -> dict[str, list[float]]:
    statistics = {}
    for label, column in zip(labels, values.T, strict=True):
        known = column[~np.isnan(column)].astype(np.float64)
        if label.kind == "regression" and len(known):
            statistics[label.name] = [float(known.mean()), float(known.std()) or 1.0]
    return statistics


def _read_table(path: pathlib.Path, split: str, size: int) -> dict[str, np.ndarray]:
    file = path / "index.npz"
    try:
        with np.load(file, allow_pickle=False) as columns:
            table = {name: columns[f"{split}/{name}"] for name in _COLUMNS}
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


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as JSON gives them back: tuples are lists, keys are strings."""
    return json.loads(json.dumps(dict(settings), allow_nan=False))


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

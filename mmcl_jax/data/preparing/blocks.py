"""A cohort in the making: its tasks in blocks, each with its files and a journal once finished.

The folder `blocks` of an unfinished cohort holds

    source.json          what the blocks were made from, see `Blocks.claim`
    00012-train.records  records of block 12, in the order of its tasks; other splits likewise
    00012.json           journal: what became of each task; written last, so that the block counts

A preparation that was killed goes on with the first block that has no journal. The blocks depend
on the number of tasks alone, and a block's files become the shards of the cohort.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmcl_jax import __version__
from mmcl_jax.data.preparing.loading import Loaded, Refused, load_in_order
from mmcl_jax.data.records import ShardWriter, open_records, read_records, shard_name
from mmcl_jax.data.subject import SPLITS, Source
from mmcl_jax.data.targets import labels as label_lists

FOLDER = "blocks"
JOURNALS = f"{FOLDER}/[0-9]*.json"

# A block is lost when the process is killed, so blocks are small; a split with thousands of files
# needs more open files than many systems allow, so there are not too many of them.
_SMALLEST = 250  # tasks
_MOST = 100  # blocks

Shard = Mapping[str, str | int]


@dataclasses.dataclass(frozen=True)
class Block:
    """A finished block.

    Attributes:
        entries: what became of its tasks, in their order; the records have no payload.
        stored: which of them are in a file.
        shards: 'file', 'records', 'bytes' by split, for the splits that have records here.
    """

    entries: tuple[Loaded | Refused, ...]
    stored: tuple[bool, ...]
    shards: Mapping[str, Shard]


class Blocks:
    """The blocks of a source in the folder of an unfinished cohort."""

    def __init__(self, folder: pathlib.Path, tasks: Sequence[Any]):
        self.path = folder / FOLDER
        self._folder = folder
        self._tasks = tasks
        self.size = max(_SMALLEST, math.ceil(len(tasks) / _MOST))

    def __len__(self) -> int:
        return math.ceil(len(self._tasks) / self.size)

    def claim(self, source: Source) -> list[str]:
        """Keeps what an earlier run made from the same source, removes anything else.

        Sources are the same when their name, parameters, settings, labels and tasks are, and the
        version of this package is. Tasks are compared by `repr`, the files that they name are not.

        Returns:
            What differed, where something was removed.
        """
        found, wanted = _read_json(self.path / "source.json"), _identity(source)
        differing = [name for name in wanted if (found or {}).get(name) != wanted[name]]
        if differing:
            # All of it: a run that was killed at its end has named its files already.
            for left in self._folder.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            self.path.mkdir()
            _write_json(self.path / "source.json", wanted)
        self._take_names_back()
        return differing if found else []

    def tasks(self, number: int) -> Sequence[Any]:
        return self._tasks[number * self.size : (number + 1) * self.size]

    def length(self, number: int) -> int:
        """Number of tasks of a block; only the last may have less than `size`."""
        return min(self.size, len(self._tasks) - number * self.size)

    def finished(self) -> set[int]:
        return {number for number in range(len(self)) if self.read(number) is not None}

    def without(self, finished: set[int]) -> list[int]:
        return [number for number in range(len(self)) if number not in finished]

    def read(self, number: int) -> Block | None:
        """A block; None where it is not finished or its files are not what the journal says."""
        content = _read_json(self.path / f"{number:05d}.json")
        if content is None:
            return None
        for shard in content["shards"].values():
            file = self.path / shard["file"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                return None
        return Block(
            entries=tuple(_entry_from_json(entry) for entry in content["entries"]),
            stored=tuple(content["stored"]),
            shards=content["shards"],
        )

    def writer(self, number: int) -> "BlockWriter":
        return BlockWriter(self.path, number)

    def keep_only(self, number: int, block: Block, wanted: Sequence[bool]) -> Block:
        """The block with its files written again, without the records that are not wanted."""
        payloads = {split: read_records(self.path, s) for split, s in block.shards.items()}
        writer = self.writer(number)
        for entry, stored, keep in zip(block.entries, block.stored, wanted, strict=True):
            if stored:
                entry = dataclasses.replace(entry, payload=next(payloads[entry.split]))
            writer.add(entry, keep)
        return writer.close()

    def name_shards(self, blocks: Sequence[Mapping[str, Shard]]) -> dict[str, list[Shard]]:
        """Moves the files of all blocks to their final names; returns them by split."""
        parts = {split: [b[split] for b in blocks if split in b] for split in SPLITS}
        shards: dict[str, list[Shard]] = {}
        for split, files in parts.items():
            names = [shard_name(split, position, len(files)) for position in range(len(files))]
            shards[split] = [
                {**part, "file": name} for part, name in zip(files, names, strict=True)
            ]
        names = {
            part["file"]: shard["file"]
            for split in SPLITS
            for part, shard in zip(parts[split], shards[split], strict=True)
        }
        _write_json(self.path / "names.json", names)
        for part, name in names.items():
            (self.path / part).rename(self._folder / name)
        return shards

    def name_shards_in(
        self, order: Mapping[str, Sequence[int]], blocks: Sequence[Mapping[str, Shard]]
    ) -> dict[str, list[Shard]]:
        """As `name_shards`, the records in another order; the files of the blocks stay.

        Args:
            order: by split, which record of the blocks comes at each place.
        """
        shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
        for split in SPLITS:
            parts = [b[split] for b in blocks if split in b]
            if not parts:
                continue
            records = open_records(self.path, parts)
            for position, rows in enumerate(np.array_split(order[split], len(parts))):
                name = shard_name(split, position, len(parts))
                writer = ShardWriter(self.path / name)
                for row in rows.tolist():
                    writer.write(records[row])
                shards[split].append(writer.close())
                (self.path / name).rename(self._folder / name)
        return shards

    def _take_names_back(self) -> None:
        """Undoes what a kill in the middle of `name_shards`, or after it, has left."""
        for part, name in (_read_json(self.path / "names.json") or {}).items():
            if (self._folder / name).exists():
                (self._folder / name).rename(self.path / part)


class BlockWriter:
    """Writes the files of one block; `close` ends them and writes the journal."""

    def __init__(self, folder: pathlib.Path, number: int):
        self._folder, self._number = folder, number
        self._entries: list[Loaded | Refused] = []
        self._stored: list[bool] = []
        self._shards: dict[str, ShardWriter] = {}

    def add(self, entry: Loaded | Refused, store: bool) -> None:
        """Notes what became of a task; a record that is to be stored is written."""
        if store:
            if entry.split not in self._shards:
                file = self._folder / f"{self._number:05d}-{entry.split}.records"
                self._shards[entry.split] = ShardWriter(file)
            self._shards[entry.split].write(entry.payload)
        if isinstance(entry, Loaded):
            entry = dataclasses.replace(entry, payload=b"")
        self._entries.append(entry)
        self._stored.append(store)

    def close(self) -> Block:
        """Raises OSError where a file does not hold what was written, e.g. for a full disk."""
        shards = {split: writer.close() for split, writer in self._shards.items()}
        content = {
            "entries": [_entry_to_json(entry) for entry in self._entries],
            "stored": self._stored,
            "shards": shards,
        }
        _write_json(self._folder / f"{self._number:05d}.json", content)
        return Block(tuple(self._entries), tuple(self._stored), shards)


def write_block(folder: pathlib.Path, number: int, source: Source, tasks: Iterable[Any]) -> None:
    """Loads tasks in this process and writes their block with every usable record.

    Args:
        folder: `Blocks.path`, on any machine that sees it.
    """
    writer = BlockWriter(folder, number)
    for entry in load_in_order(source, 0, tasks):
        writer.add(entry, store=isinstance(entry, Loaded))
    writer.close()


def _identity(source: Source) -> dict[str, Any]:
    tasks = hashlib.sha256()
    for task in source.tasks:
        tasks.update(repr(task).encode("utf-8", "backslashreplace") + b"\n")
    identity = {
        "version": __version__,
        "source": source.name,
        "parameters": dict(source.parameters),
        "settings": dict(source.settings),
        "labels": label_lists.to_json(source.labels),
        "tasks": tasks.hexdigest(),
    }
    return json.loads(json.dumps(identity))


def _entry_to_json(entry: Loaded | Refused) -> dict[str, Any]:
    if isinstance(entry, Refused):
        return {"refused": dataclasses.astuple(entry)}
    fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    del fields["payload"]
    fields["labels"] = [None if math.isnan(value) else float(value) for value in entry.labels]
    fields["ecg_digest"] = entry.ecg_digest.hex()
    if entry.lead_statistics is not None:
        fields["lead_statistics"] = np.asarray(entry.lead_statistics, np.float64).tolist()
    return fields


def _entry_from_json(fields: Mapping[str, Any]) -> Loaded | Refused:
    if "refused" in fields:
        return Refused(*fields["refused"])
    labels = [math.nan if value is None else value for value in fields["labels"]]
    statistics = fields["lead_statistics"]
    changed = {
        "labels": np.array(labels, np.float32),
        "ecg_digest": bytes.fromhex(fields["ecg_digest"]),
        "flags": tuple(fields["flags"]),
        "lead_statistics": None if statistics is None else np.array(statistics, np.float32),
    }
    return Loaded(**{**fields, **changed}, payload=b"")


def _read_json(file: pathlib.Path) -> Any:
    """None where there is no such file, or a damaged one."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _write_json(file: pathlib.Path, content: Any) -> None:
    """The file appears whole: a journal in part would stand for a finished block."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(file)

"""Which loaded records enter a cohort: unique names, no person and no ECG in two splits."""

import dataclasses

from mmcl_jax.data.preparing.loading import Loaded, Refused
from mmcl_jax.data.subject import SPLITS


class CohortError(ValueError):
    """The cohort, or the data that should become one, cannot be used as it is."""


class Admission:
    """Decides record by record what enters the cohort, and remembers why."""

    def __init__(self):
        self.read = 0
        self.used: dict[str, list[Loaded]] = {split: [] for split in SPLITS}
        self.refused: list[Refused] = []
        self.flagged: list[tuple[str, str]] = []
        self._records: set[str] = set()
        self._split_of: dict[str, tuple[str, str]] = {}  # subject: split, record
        self._ecgs: dict[bytes, tuple[str, str, bool]] = {}  # digest: split, record, assigned

    def judge(self, entry: Loaded | Refused) -> Loaded | None:
        """Returns the record when it is to be written, None when it is refused.

        Raises:
            CohortError: its subject, or the same ECG, is in another split already, and the data
                set says so. An ECG that is there by `assign_split` is refused instead.
        """
        self.read += 1
        if isinstance(entry, Refused):
            self.refused.append(entry)
            return None
        if entry.record in self._records:
            return self._refuse(entry, "a record of this name was read before")
        split, record = self._split_of.setdefault(entry.subject, (entry.split, entry.record))
        if split != entry.split:
            raise CohortError(
                f"subject {entry.subject} is in two splits: {split} (record {record}) and "
                f"{entry.split} (record {entry.record}); split by subject"
            )
        if entry.ecg_digest:
            split, record, assigned = self._ecgs.setdefault(
                entry.ecg_digest, (entry.split, entry.record, entry.split_assigned)
            )
            if split != entry.split:
                if assigned or entry.split_assigned:
                    return self._refuse(
                        entry,
                        f"holds the same ECG, bit for bit, as record {record}, whose split is "
                        f"{split} and not {entry.split}",
                    )
                raise CohortError(
                    f"records {record} ({split}) and {entry.record} ({entry.split}) hold the same "
                    "ECG, bit for bit, in two splits; remove one or put both into one split"
                )
            if record != entry.record:
                self.flagged.append((entry.record, f"same ECG as another record: {record}"))
        self.flagged += [(entry.record, flag) for flag in entry.flags]
        self._records.add(entry.record)
        self.used[entry.split].append(dataclasses.replace(entry, payload=b"", lead_statistics=None))
        return entry

    def _refuse(self, entry: Loaded, reason: str) -> None:
        self.refused.append(Refused(entry.record, entry.file, reason))

"""Records with participant numbers in every place that a source can put them.

In a file of its own because worker processes must be able to import it.
"""

import dataclasses
import logging
import pathlib
import warnings

from noting_source import NotingSource

from mmcl_jax.data.subject import RefusedRecord

EIDS = tuple(str(4_012_300 + 7 * number) for number in range(40))


class EidSource(NotingSource):
    """As `NotingSource`; of 40 records the names, files, remarks, refusals and warnings are told.

    Record i is of participant EIDS[i], or of the one before for odd i below `paired`.
    """

    @property
    def tasks(self):
        return [Task(number) for number in range(self.count)]

    @property
    def parameters(self):
        return super().parameters | {"subjects": f"{EIDS[0]}|(\\d+)", "folds": {"val": [9]}}

    def load(self, task):
        try:
            subject = super().load(task.number)
        except RefusedRecord as error:
            raise RefusedRecord(task.path, f"{task.path.name}: {error.reason}") from None
        warnings.warn(f"odd values in {task.path}", stacklevel=1)
        logging.getLogger("eid").warning("odd values in %s", task.path)
        person = EIDS[int(subject.subject[1:])]
        return dataclasses.replace(
            subject,
            record=f"{EIDS[int(subject.record[1:])]}_2",
            subject=person,
            flags=tuple(f"{flag}: in {task.path}" for flag in subject.flags),
        )


@dataclasses.dataclass(frozen=True)
class Task:
    number: int

    @property
    def path(self):
        return pathlib.Path(f"/bulk/{EIDS[self.number]}_20205_2_0.xml")

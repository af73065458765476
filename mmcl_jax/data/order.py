"""Order of the training records: batches without the same person twice, epoch after epoch."""

import sys

import numpy as np
from jaxtyping import Int


class EpochOrder:
    """Rows of the batches of one process, by step. Random access, endless."""

    def __init__(
        self,
        rows: Int[np.ndarray, " n"],
        subjects: np.ndarray,
        batch_size: int,
        seed: int,
        part: slice,
    ):
        self._rows = rows
        _, self._people, counts = np.unique(subjects[rows], return_inverse=True, return_counts=True)
        self._steps = full_batches(counts, batch_size)
        self._batch_size = batch_size
        self._seed = seed
        self._part = part
        self._epochs: dict[int, Int[np.ndarray, "steps batch"]] = {}

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Int[np.ndarray, " batch"]:
        epoch, position = divmod(step, self._steps)
        batches = self._epochs.get(epoch)
        if batches is None:
            # Threads that read ahead are in at most two epochs at a time.
            batches = self._epoch(epoch)
            self._epochs = {epoch: batches, **dict(list(self._epochs.items())[:1])}
        return batches[position][self._part]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._rows)} rows, seed {self._seed})"

    def _epoch(self, epoch: int) -> Int[np.ndarray, "steps batch"]:
        """Deals the records out to the batches like cards, person by person.

        Records of a person are neighbours in the deck, so with at most `steps` of them no batch
        gets two. With one record per person this is a plain random order.
        """
        rng = np.random.default_rng((self._seed, epoch))
        shuffled = rng.permutation(len(self._rows))
        # Random order of the people, and of the records of a person.
        place = rng.permutation(self._people.max() + 1)[self._people[shuffled]]
        deck = shuffled[np.argsort(place, kind="stable")]
        people = self._people[deck]
        first = np.flatnonzero(np.r_[True, people[1:] != people[:-1]])
        number = np.arange(len(deck)) - np.repeat(first, np.diff(np.r_[first, len(deck)]))
        deck = deck[number < self._steps][: self._steps * self._batch_size]
        return self._rows[rng.permutation(deck.reshape(self._batch_size, self._steps).T)]


def full_batches(counts: Int[np.ndarray, " people"], batch_size: int) -> int:
    """Largest number of batches of different people, given the number of records of each person.

    m batches can be filled exactly when sum(min(count, m)) >= m * batch_size; the left side is
    concave in m, so all smaller numbers are possible too.
    """
    most = int(counts.sum()) // batch_size
    possible = 0
    while possible < most:
        middle = (possible + most + 1) // 2
        if np.minimum(counts, middle).sum() >= middle * batch_size:
            possible = middle
        else:
            most = middle - 1
    if possible == 0:
        raise ValueError(
            f"batch_size is {batch_size}, larger than the {len(counts)} people "
            f"({counts.sum()} records) of the selection; make the batch smaller or select more"
        )
    return possible

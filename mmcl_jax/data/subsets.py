"""Balanced training sets and their nested subsets (paper, sections IV-B and V-D).

The paper balances the fine-tuning set of a disease once (all positives, as many negatives) and
then keeps 10 % and 1 % of it, each subset within the larger one. At its sizes that is 4,030, 403
and 40 records for CAD, 1,670, 167 and 17 for AF, and 2,500, 250 and 25 for DM.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def shuffled_classes(
    classes: Sequence[Int[np.ndarray, " n"]], seed: int
) -> list[Int[np.ndarray, " n"]]:
    """The members of each class in a random order, from which subsets are cut.

    One generator per class: the size of one class does not change the choice in another.
    """
    return [
        np.random.default_rng((seed, number)).permutation(members)
        for number, members in enumerate(classes)
    ]


def nested_subset(
    classes: Sequence[Int[np.ndarray, " n"]], fraction: float
) -> Int[np.ndarray, " m"]:
    """`fraction` of all members, from the front of each class, in no particular order.

    The classes take turns in proportion to their sizes. So the subset has `fraction` of the
    members rounded to a whole number, every class is represented as long as there are that many,
    equal classes differ by one member at most, and a smaller fraction gives a part of a larger one.

    Args:
        classes: members of each class, in the order in which they are taken.
        fraction: in (0, 1].
    """
    classes = [members for members in classes if len(members)]
    turn = np.concatenate([_turns(len(members)) for members in classes])
    total = max(len(classes), round(fraction * len(turn)))
    return np.concatenate(classes)[np.argsort(turn, kind="stable")[:total]]


def _turns(n: int) -> Float[np.ndarray, " n"]:
    """When each member of a class has its turn: the first at 0, member j at (j + 1/2) / n."""
    turns = (np.arange(n) + 0.5) / n
    turns[0] = 0
    return turns

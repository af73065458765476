"""A cohort whose training and validation labels belong to other records: the leak test.

What a model learns from them says nothing about the test split, so its AUROC there must be about
0.5 and its r about 0. If it is not, something else than the labels reached the model.
"""

import dataclasses

import numpy as np

from mmcl_jax.data.cohort import Cohort

SPLITS = ("train", "val")


def shuffle_labels(cohort: Cohort, seed: int = 0) -> Cohort:
    """The cohort with the rows of its label table permuted within `train` and within `val`.

    All labels of a record move together, so counts, statistics and the correlations between labels
    stay. The validation split is shuffled too, because parameters are chosen by it: choosing by
    true labels would be learning from them. The test split and the files stay as they are.
    """
    tables = dict(cohort.tables)
    for number, split in enumerate(SPLITS):
        if split in tables:
            labels = tables[split]["labels"]
            order = np.random.default_rng((seed, number)).permutation(len(labels))
            labels = labels[order]
            labels.flags.writeable = False
            tables[split] = {**tables[split], "labels": labels}
    return dataclasses.replace(cohort, tables=tables)

import numpy as np
import pytest
from tiny_source import TinySource

from mmcl_jax.data import cohort as cohorts


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "cohort"
    draws = np.random.default_rng(0).integers(0, 2, 60)
    changes = []
    for record, positive in enumerate(draws):
        changes.append((record, "labels", {"CAD": float(positive), "LVEF": 50.0 + record}))
        # Something to learn: positives have louder recordings.
        ecg = np.random.default_rng(record).standard_normal((12, 5000), np.float32)
        changes.append((record, "ecg", ecg * np.float32(1 + positive)))
    source = TinySource(count=60, without_cmr=tuple(range(60)), changes=tuple(changes))
    cohorts.write(source, folder, workers=0, progress=False)
    return folder

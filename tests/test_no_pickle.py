"""Files are read without pickle, also by NumPy, Orbax and grain.

Python reports each name that a pickle looks up as the audit event `pickle.find_class`; without one
a pickle cannot call anything.
"""

import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_source import TinySource

from mmcl_jax import predictions
from mmcl_jax.checkpoints import Checkpoints, load
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data import pipeline
from mmcl_jax.data.formats import arrays
from mmcl_jax.data.preparing import inspection
from mmcl_jax.state import State

_seen: list[str] | None = None


def _note(event, arguments):
    if _seen is not None and event == "pickle.find_class":
        _seen.append(".".join(map(str, arguments[:2])))


@pytest.fixture
def looked_up():
    """Names that pickles look up from here on."""
    global _seen
    # A hook cannot be removed.
    if not hasattr(sys, "_mmcl_jax_noting"):
        sys.addaudithook(_note)
        sys._mmcl_jax_noting = True
    _seen = []
    yield _seen
    _seen = None


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_the_hook_notices_a_pickle(looked_up):
    pickle.loads(pickle.dumps(Hostile()))
    assert looked_up == ["builtins.print"]


def test_cohort_batches_and_checkpoints(tmp_path, looked_up):
    cohorts.write(TinySource(), tmp_path / "c", workers=0, progress=False)
    cohort = cohorts.open_cohort(tmp_path / "c")
    rows = np.arange(8)
    batches = pipeline.train_batches(
        cohort, "train", rows, fields=("ecg", "cmr"), labels=("CAD",), batch_size=4, seed=0
    )
    assert next(iter(batches))["ecg"].shape == (4, 12, 5000)
    inspection.describe(tmp_path / "c")

    params = {"head": {"bias": jnp.ones(3)}}
    state = State(jnp.asarray(1), params, {}, optax.adamw(1e-3).init(params))
    with Checkpoints(tmp_path / "k") as saved:
        saved.save_best(state)
        saved.save_latest(state, {})
    with Checkpoints(tmp_path / "k") as saved:
        assert saved.restore_latest(jax.tree.map(jnp.zeros_like, state)) is not None
    assert load(tmp_path / "k", "best")[2] == 1
    predictions.save(tmp_path / "p.npz", {"a": np.ones(3)})
    assert looked_up == []


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("read", [arrays.open_rows, inspection.describe])
def test_arrays_of_objects_are_refused_unread(tmp_path, looked_up, capsys, suffix, read):
    path = tmp_path / f"hostile{suffix}"
    objects = np.array([[Hostile(), Hostile()]], object)
    if suffix == ".npy":
        np.save(path, objects, allow_pickle=True)
    else:
        np.savez(path, objects)
    with pytest.raises(ValueError, match=r"hostile|allow_pickle"):
        read(path)
    assert looked_up == []
    assert capsys.readouterr().out == ""


def test_the_index_of_a_cohort_holds_no_objects(tmp_path, looked_up, capsys):
    cohorts.write(TinySource(count=3), tmp_path / "c", workers=0, progress=False)
    file = tmp_path / "c" / "index.npz"
    with np.load(file) as columns:
        content = {name: columns[name] for name in columns}
    content["train/record"] = np.array([Hostile()] * 3, object)
    np.savez(file, **content)
    with pytest.raises(cohorts.CohortError, match=r"index.npz: missing or damaged"):
        cohorts.open_cohort(tmp_path / "c")
    assert looked_up == []
    assert capsys.readouterr().out == ""

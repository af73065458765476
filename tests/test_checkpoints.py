import errno
import os
import pathlib
import resource
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmcl_jax import retry, step_folder
from mmcl_jax.checkpoints import Checkpoints, load, read_tree
from mmcl_jax.sharding import make_mesh, replicate
from mmcl_jax.state import State


def make_state(step: int, extra=None, devices: int = 1) -> State:
    params = {
        "ecg_encoder": {"kernel": jnp.arange(6.0).reshape(2, 3) + step},
        "head": {"bias": jnp.ones(3)},
    }
    optimizer = optax.adamw(1e-3)
    state = State(jnp.asarray(step), params, extra or {}, optimizer.init(params))
    return replicate(state, make_mesh(jax.devices()[:devices]))


@pytest.mark.parametrize("extra", [{}, {"batch_stats": {"cmr_encoder": {"mean": jnp.ones(3)}}}])
def test_state_comes_back_bit_for_bit(tmp_path, extra):
    state = make_state(4, extra)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state) is None
        checkpoints.save_latest(state, {"best": 0.5})
    fresh = jax.tree.map(jnp.zeros_like, state)
    found, progress = Checkpoints(tmp_path).restore_latest(fresh)
    assert progress == {"best": 0.5}
    jax.tree.map(np.testing.assert_array_equal, found, state)


def test_latest_and_best_are_both_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3, 4):
            state = make_state(step)
            if step <= 2:
                checkpoints.save_best(state)
            checkpoints.save_latest(state, {})
    params, extra, step = load(tmp_path, "latest")
    assert (step, extra) == (4, {})
    np.testing.assert_array_equal(params["ecg_encoder"]["kernel"], np.arange(6).reshape(2, 3) + 4)
    assert load(tmp_path, "best")[2] == 2


def test_best_can_be_saved_again_after_a_kill(tmp_path):
    for _ in range(2):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save_best(make_state(3))
    assert load(tmp_path, "best")[2] == 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_device_to_eight_and_back(tmp_path, dtype):
    def made(step, devices):
        as_dtype = jax.tree.map(lambda leaf: leaf.astype(dtype), make_state(step).params)
        state = make_state(step).replace(params=as_dtype)
        return replicate(state, make_mesh(jax.devices()[:devices]))

    found = made(1, devices=1)
    for devices in (8, 1):
        with Checkpoints(tmp_path / str(devices)) as checkpoints:
            checkpoints.save_latest(found, {})
        with Checkpoints(tmp_path / str(devices)) as checkpoints:
            found, _ = checkpoints.restore_latest(made(0, devices))
        leaf = found.params["head"]["bias"]
        assert (len(leaf.sharding.device_set), leaf.dtype) == (devices, dtype)
        jax.tree.map(np.testing.assert_array_equal, found.params, made(1, devices=1).params)


def test_reading_warns_of_nothing(tmp_path, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_best(make_state(3), score=1.0)
        checkpoints.save_latest(make_state(3), {})
    with caplog.at_level("WARNING", "absl"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore_latest(make_state(0))
        checkpoints.best()
        load(tmp_path, "best")
        read_tree(tmp_path / "checkpoints" / "latest" / "3" / "optimizer_state")
    assert caplog.messages == []


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the stage first"):
        load(tmp_path, "best")


# --- damaged ---------------------------------------------------------------------------------


def flip_a_bit(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_in_half(file: pathlib.Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def names(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def two(tmp_path):
    """The folder `checkpoints` of a stage, with steps 1 and 2."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save_best(make_state(step), score=float(step))
            checkpoints.save_latest(make_state(step), {"at": step})
    return tmp_path / "checkpoints"


DAMAGE = {
    "a flipped bit": lambda step: flip_a_bit(largest_file(step / "params")),
    "half a file": lambda step: cut_in_half(largest_file(step / "params")),
    "no file": lambda step: largest_file(step / "params").unlink(),
    "a flipped bit of the manifest": lambda step: flip_a_bit(step / "manifest.json"),
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "no metadata": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_the_checkpoint_before_a_damaged_one_is_used(two, capsys, damage):
    damage(two / "latest" / "2")
    damage(two / "best" / "2")
    assert load(two.parent, "latest")[2] == load(two.parent, "best")[2] == 1
    with Checkpoints(two.parent) as checkpoints:
        state, progress = checkpoints.restore_latest(make_state(0))
        assert (int(state.step), progress) == (1, {"at": 1})
        jax.tree.map(np.testing.assert_array_equal, state, make_state(1))
        assert checkpoints.best() == (1, 1.0)
        # Step 2 is taken again.
        checkpoints.save_latest(make_state(2), {"at": 2})
    assert load(two.parent, "latest")[2] == 2
    assert "latest/2 is damaged" in capsys.readouterr().err
    assert "latest-2" in names(two / "damaged")


def test_a_run_without_a_whole_checkpoint_is_an_error(two, capsys):
    for kind in ("latest", "best"):
        for step in ("1", "2"):
            flip_a_bit(largest_file(two / kind / step))
    with pytest.raises(step_folder.DamagedCheckpoint, match="backup, or delete"):
        load(two.parent, "best")
    # The second start, which a cluster may make by itself, must not begin again from step 0.
    for _ in range(2):
        with (
            Checkpoints(two.parent) as checkpoints,
            pytest.raises(step_folder.DamagedCheckpoint, match=f"delete {two.parent} to run the"),
        ):
            checkpoints.restore_latest(make_state(0))
        assert names(two / "latest") == names(two / "best") == {"1", "2"}
    assert "latest/2 is damaged" in capsys.readouterr().err


def test_what_a_save_that_was_cut_off_left_does_not_count(two):
    for kind in ("latest", "best"):
        for name in ("3.unsealed.orbax-checkpoint-tmp", "4.unsealed", "0.removed"):
            (two / kind / name).mkdir()
    assert load(two.parent, "latest")[2] == 2
    with Checkpoints(two.parent) as checkpoints:
        assert int(checkpoints.restore_latest(make_state(0))[0].step) == 2
    assert names(two / "latest") == names(two / "best") == {"1", "2"}


def test_a_save_that_was_cut_off_before_its_name_counts(two):
    """Nothing of the only checkpoint is lost, whenever the program is killed."""
    for kind in ("latest", "best"):
        (two / kind / "2").rename(two / kind / "2.unsealed")
        step_folder.remove(two / kind / "1")
    with Checkpoints(two.parent) as checkpoints:
        assert int(checkpoints.restore_latest(make_state(0))[0].step) == 2
    assert names(two / "latest") == names(two / "best") == {"2"}


def test_best_parameters_of_steps_taken_again_are_removed(two):
    step_folder.remove(two / "latest" / "2")
    with Checkpoints(two.parent) as checkpoints:
        checkpoints.restore_latest(make_state(0))
        assert checkpoints.best() == (1, 1.0)
    assert names(two / "best") == {"1"}


def test_the_last_two_are_kept(two):
    with Checkpoints(two.parent) as checkpoints:
        checkpoints.save_latest(make_state(3), {})
    assert names(two / "latest") == {"2", "3"}


def test_a_checkpoint_of_another_model_is_an_error(two):
    like = make_state(0)
    like = like.replace(params={**like.params, "head": {"bias": jnp.ones(5)}})
    with (
        Checkpoints(two.parent) as checkpoints,
        pytest.raises(ValueError, match="latest/2: does not fit the model and optimiser"),
    ):
        checkpoints.restore_latest(like)


# --- file systems ----------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """Files cannot grow beyond 1000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def wide_state(step: int) -> State:
    state = make_state(step)
    kernel = np.random.default_rng(0).standard_normal(5000, np.float32)
    return state.replace(params={**state.params, "head": {"bias": kernel}})


@pytest.mark.parametrize("kind", ["latest", "best"])
def test_a_full_disk_leaves_the_checkpoint_before(two, request, kind):
    def save():
        with Checkpoints(two.parent) as checkpoints:
            if kind == "latest":
                checkpoints.save_latest(wide_state(3), {})
            else:
                checkpoints.save_best(wide_state(3))

    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="step 3 could not be written .*; that of step 2 is intact"):
        save()
    assert step_folder.steps(two / kind) == [2, 1]
    assert load(two.parent, kind)[2] == 2


def test_what_a_failed_save_leaves_late_goes_with_the_next_one(two):
    with Checkpoints(two.parent) as checkpoints:
        (two / "latest" / "3.unsealed.orbax-checkpoint-tmp").mkdir()
        checkpoints.save_latest(make_state(4), {})
    assert names(two / "latest") == {"2", "4"}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(retry, "PATIENCE", 30.0)


def vanish(folder: pathlib.Path, seconds: float) -> threading.Timer:
    """Takes a folder away; it comes back after `seconds`."""
    away = folder.with_name("away")
    folder.rename(away)
    timer = threading.Timer(seconds, away.rename, [folder])
    timer.start()
    return timer


def test_a_file_system_that_comes_back_is_waited_for(two, quick, capsys):
    with Checkpoints(two.parent) as checkpoints:
        timer = vanish(two.parent, 0.3)
        checkpoints.save_best(make_state(3))
        timer.join()
        timer = vanish(two.parent, 0.3)
        checkpoints.save_latest(make_state(3), {}, wait=True)
        timer.join()
        timer = vanish(two.parent, 0.3)
        assert int(checkpoints.restore_latest(make_state(0))[0].step) == 3
        timer.join()
    assert load(two.parent, "best")[2] == 3
    assert "trying again in 0.05 s" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_a_save_in_the_background_waits_for_the_file_system(two, quick, monkeypatch, processes):
    with Checkpoints(two.parent) as checkpoints:
        many = types.SimpleNamespace(process_count=lambda: processes, tree=jax.tree)
        with monkeypatch.context() as patch:
            patch.setattr("mmcl_jax.checkpoints.jax", many)
            timer = vanish(two.parent, 0.3)
            checkpoints.save_latest(make_state(3), {})
            timer.join()
    assert names(two / "latest") == {"2", "3"}


@pytest.fixture
def loses_3(monkeypatch):
    """The latest state of step 3 does not reach the disk."""
    rename = pathlib.Path.rename
    failures = iter([OSError(errno.ESTALE, os.strerror(errno.ESTALE))])

    def once_stale(path, target):
        if path.parts[-2:] == ("latest", "3.unsealed") and (error := next(failures, None)):
            raise error
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", once_stale)


@pytest.mark.usefixtures("loses_3")
def test_a_save_lost_in_the_background_is_made_up_for(two, quick, capsys):
    with Checkpoints(two.parent) as checkpoints:
        checkpoints.save_latest(make_state(3), {})
        checkpoints.save_latest(make_state(4), {})
        assert names(two / "latest") == {"2", "4"}
    assert "step 3 could not be written (Stale file handle)" in capsys.readouterr().err


@pytest.mark.usefixtures("loses_3")
def test_the_best_parameters_of_the_state_on_disk_are_kept(two, quick):
    with Checkpoints(two.parent) as checkpoints:
        checkpoints.save_best(make_state(3))
        checkpoints.save_latest(make_state(3), {})
        checkpoints.save_best(make_state(4))
        # A kill at this moment goes on from step 2, whose best parameters are its own.
        assert names(two / "latest") == {"1", "2"}
        assert names(two / "best") == {"2", "3", "4"}
        checkpoints.save_latest(make_state(4), {})
        checkpoints.save_best(make_state(5))
        assert names(two / "best") == {"4", "5"}


@pytest.mark.usefixtures("loses_3")
def test_several_processes_end_where_a_save_is_lost(two, quick, monkeypatch):
    with Checkpoints(two.parent) as checkpoints:
        checkpoints.save_latest(make_state(3), {})
        two_processes = types.SimpleNamespace(process_count=lambda: 2)
        monkeypatch.setattr("mmcl_jax.checkpoints.jax", two_processes)
        with pytest.raises(OSError, match="step 3 could not be written .Stale file handle"):
            checkpoints.save_latest(make_state(4), {})


def test_a_file_system_that_stays_away_is_an_error(two, quick, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 0.1)
    checkpoints = Checkpoints(two.parent)
    timer = vanish(two, 1.0)
    with pytest.raises(OSError, match="step 3 could not be written .No such file or directory"):
        checkpoints.save_best(make_state(3))
    # Nothing was written below the mount point.
    assert not two.exists()
    timer.join()
    assert names(two / "best") == {"1", "2"}

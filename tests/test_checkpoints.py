import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmcl_jax.checkpoints import Checkpoints, load, transplant
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


def test_one_device_to_eight_and_back(tmp_path):
    state = make_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(state, {})
    with Checkpoints(tmp_path) as checkpoints:
        wide, _ = checkpoints.restore_latest(make_state(0, devices=8))
    assert len(wide.params["head"]["bias"].sharding.device_set) == 8
    jax.tree.map(np.testing.assert_array_equal, wide.params, state.params)


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the stage first"):
        load(tmp_path, "best")


OURS = {"ecg_encoder": {"block_0": {"kernel": np.zeros((2, 2))}, "fc_norm": {"scale": np.ones(2)}}}
THEIRS = {"ecg_encoder": {"block_0": {"kernel": np.ones((2, 2))}, "norm": {"scale": np.ones(2)}}}


def test_transplant_takes_the_tower():
    found = transplant(
        {**OURS, "head": 1}, THEIRS, "ecg_encoder", new=("/fc_norm/",), unused=("/norm/",)
    )
    np.testing.assert_array_equal(found["ecg_encoder"]["block_0"]["kernel"], np.ones((2, 2)))
    np.testing.assert_array_equal(found["ecg_encoder"]["fc_norm"]["scale"], np.ones(2))
    assert "norm" not in found["ecg_encoder"]
    assert found["head"] == 1


def test_transplant_names_what_is_missing_and_left_over():
    with pytest.raises(ValueError, match="missing: ecg_encoder/fc_norm/scale; left over: ecg_enc"):
        transplant(OURS, THEIRS, "ecg_encoder")


def test_transplant_names_other_shapes():
    wide = {"ecg_encoder": {"block_0": {"kernel": np.ones((2, 3))}}}
    with pytest.raises(ValueError, match=r"block_0/kernel: \(2, 3\) there, \(2, 2\) here"):
        transplant(OURS, wide, "ecg_encoder", new=("/fc_norm/",))


def test_a_new_leaf_stays_fresh_even_where_the_source_has_it():
    theirs = {"ecg_encoder": {**THEIRS["ecg_encoder"], "fc_norm": {"scale": np.full(2, 9.0)}}}
    found = transplant(OURS, theirs, "ecg_encoder", new=("/fc_norm/",), unused=("/norm/",))
    np.testing.assert_array_equal(found["ecg_encoder"]["fc_norm"]["scale"], np.ones(2))

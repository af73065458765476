import numpy as np
import pytest

from mmcl_jax.transplant import transplant

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

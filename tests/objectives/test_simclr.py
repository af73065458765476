import numpy as np
import pytest

from mmcl_jax.objectives.simclr import nt_xent


@pytest.fixture(scope="module")
def numbers(golden):
    return np.load(golden / "unimodal_losses.npz")


def test_golden_nt_xent(numbers):
    loss = nt_xent(
        numbers["view1"], numbers["view2"], temperature=numbers["nt_xent_temperature"].item()
    )
    assert float(loss) == pytest.approx(numbers["nt_xent"].item(), rel=1e-6)


def test_equals_a_loop_over_views(numbers):
    views = np.concatenate([numbers["view1"], numbers["view2"]])
    views = views / np.linalg.norm(views, axis=1, keepdims=True)
    total = 0.0
    for i in range(32):
        others = [np.exp(views[i] @ views[j] / 0.5) for j in range(32) if j != i]
        total -= np.log(np.exp(views[i] @ views[(i + 16) % 32] / 0.5) / sum(others))
    loss = nt_xent(numbers["view1"], numbers["view2"], temperature=0.5)
    assert float(loss) == pytest.approx(total / 32, rel=1e-5)


def test_padding_is_left_out(numbers):
    view1, view2 = numbers["view1"], numbers["view2"]
    valid = (np.arange(16) < 9).astype(np.float32)
    padded = nt_xent(view1, view2, temperature=0.1, valid=valid)
    assert float(padded) == pytest.approx(
        float(nt_xent(view1[:9], view2[:9], temperature=0.1)), rel=1e-6
    )

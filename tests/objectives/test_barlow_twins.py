import jax
import numpy as np
import pytest

from mmcl_jax.objectives.barlow_twins import barlow_twins_loss


@pytest.fixture(scope="module")
def numbers(golden):
    return np.load(golden / "unimodal_losses.npz")


def test_golden_loss(numbers):
    loss, _ = barlow_twins_loss(
        numbers["view1"],
        numbers["view2"],
        off_diagonal_weight=numbers["barlow_twins_lambda"].item(),
    )
    assert float(loss) == pytest.approx(numbers["barlow_twins"].item(), rel=1e-6)


def test_cross_correlation_is_that_of_numpy(numbers):
    view1, view2 = numbers["view1"], numbers["view2"]
    loss, correlation = barlow_twins_loss(view1, view2, off_diagonal_weight=0.1)
    expected = np.corrcoef(view1.T, view2.T)[:128, 128:]
    np.testing.assert_allclose(correlation, expected, atol=1e-4)
    diagonal = np.diagonal(expected)
    redundancy = np.sum(expected**2) - np.sum(diagonal**2)
    assert float(loss) == pytest.approx(np.sum((1 - diagonal) ** 2) + 0.1 * redundancy, rel=1e-3)


def test_padding_counts_nowhere(numbers):
    view1, view2 = numbers["view1"], numbers["view2"]
    valid = (np.arange(16) < 9).astype(np.float32)
    padded, _ = barlow_twins_loss(
        np.where(valid[:, None] > 0, view1, 7.0),
        np.where(valid[:, None] > 0, view2, -3.0),
        off_diagonal_weight=5e-3,
        valid=valid,
    )
    whole, _ = barlow_twins_loss(view1[:9], view2[:9], off_diagonal_weight=5e-3)
    assert float(padded) == pytest.approx(float(whole), rel=1e-6)


def test_equal_uncorrelated_views_have_no_loss():
    # Columns of a Hadamard matrix but the first: mean 0 and orthogonal.
    hadamard = np.array([[1.0]])
    for _ in range(4):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    view = hadamard[:, 1:].astype(np.float32)
    loss = jax.jit(lambda a, b: barlow_twins_loss(a, b, off_diagonal_weight=1.0)[0])
    assert float(loss(view, 3 * view)) == pytest.approx(0, abs=1e-8)
    # A collapsed dimension correlates with nothing.
    collapsed = view.copy()
    collapsed[:, 0] = 5.0
    assert float(loss(collapsed, collapsed)) == pytest.approx(1, rel=1e-4)
    gradient = jax.grad(lambda a: loss(a, a))(collapsed)
    assert np.isfinite(gradient).all()

import numpy as np
import pytest

from mmcl_jax.data.signals.baseline import baseline


def dense_baseline(lead, smoothness, asymmetry, iterations):
    """The definition with full matrices."""
    difference = np.diff(np.eye(len(lead)), n=2, axis=0)
    penalty = smoothness * difference.T @ difference
    weights = np.ones(len(lead))
    for _ in range(iterations):
        estimate = np.linalg.solve(np.diag(weights) + penalty, weights * lead)
        weights = np.where(lead > estimate, asymmetry, 1 - asymmetry)
    return estimate


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_agrees_with_full_matrices(iterations):
    signal = np.cumsum(np.random.default_rng(0).standard_normal((2, 60)), axis=1)
    expected = [dense_baseline(lead, 1e4, 0.3, iterations) for lead in signal]
    found = baseline(signal, 1e4, 0.3, iterations)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_stops_early_without_another_result():
    # Weights settle within a few solves here, so both must be the fixed point.
    signal = np.random.default_rng(1).standard_normal((1, 60))
    np.testing.assert_array_equal(baseline(signal, 1e3, 0.3, 20), baseline(signal, 1e3, 0.3, 30))
    expected = dense_baseline(signal[0], 1e3, 0.3, 20)
    np.testing.assert_allclose(baseline(signal, 1e3, 0.3, 20)[0], expected, rtol=1e-8, atol=1e-9)


def test_a_straight_line_is_its_own_baseline():
    line = np.linspace(-3.0, 5.0, 5000)[None]
    np.testing.assert_allclose(baseline(line), line, atol=1e-6)


def test_leads_do_not_influence_each_other():
    signal = np.random.default_rng(2).standard_normal((3, 500))
    alone = np.concatenate([baseline(lead[None]) for lead in signal])
    np.testing.assert_allclose(baseline(signal), alone, rtol=1e-12, atol=1e-12)


def test_the_input_is_not_changed():
    signal = np.random.default_rng(2).standard_normal((1, 500))
    kept = signal.copy()
    baseline(signal)
    np.testing.assert_array_equal(signal, kept)


def test_too_short_a_signal_is_an_error():
    with pytest.raises(ValueError, match="at least 3 samples, found 2"):
        baseline(np.zeros((1, 2)))

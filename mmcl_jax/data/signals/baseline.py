"""Baseline wander of an ECG lead by asymmetric least squares.

Eilers and Boelens, "Baseline correction with asymmetric least squares smoothing", 2005. The
baseline z of a signal y minimises

    sum_t w_t (y_t - z_t)^2 + smoothness * sum_t (z_t - 2 z_{t+1} + z_{t+2})^2,

with w_t = asymmetry where y_t > z_t and 1 - asymmetry elsewhere, found by alternating between the
two. The system (W + smoothness D'D) z = W y is symmetric, positive definite and has five
diagonals, so LAPACK's banded Cholesky solves it in time linear in T.
"""

import functools

import numpy as np
from jaxtyping import Float
from scipy.linalg.lapack import dpbtrf, dpbtrs


def baseline(
    signal: Float[np.ndarray, "L T"],
    smoothness: float = 1e7,
    asymmetry: float = 0.3,
    iterations: int = 5,
) -> Float[np.ndarray, "L T"]:
    """Baseline of every lead, float64, in the unit of the signal.

    The result after `iterations` solves is returned; a lead whose weights stay the same from one
    solve to the next has converged and is not solved again.
    """
    signal = np.asarray(signal, dtype=np.float64)
    penalty, unit_factor = _system(signal.shape[1], smoothness)
    # The first weights are 1 for every lead, so all leads share one factor.
    estimate = np.ascontiguousarray(_solve(unit_factor, signal.T).T)
    if iterations == 1:
        return estimate

    matrix = np.empty_like(penalty)
    for lead, current in zip(signal, estimate, strict=True):
        above = None
        for _ in range(iterations - 1):
            previous, above = above, lead > current
            if previous is not None and np.array_equal(above, previous):
                break
            weights = np.where(above, asymmetry, 1.0 - asymmetry)
            matrix[:] = penalty
            matrix[0] += weights
            current[:] = _solve(_factorise(matrix), weights * lead)
    return estimate


@functools.lru_cache(maxsize=4)
def _system(
    samples: int, smoothness: float
) -> tuple[Float[np.ndarray, "3 T"], Float[np.ndarray, "3 T"]]:
    """smoothness * D'D and the Cholesky factor of I + smoothness * D'D, both in band form.

    Row k of the band form holds the k-th diagonal below the main one (LAPACK's lower form).
    """
    if samples < 3:
        raise ValueError(f"a baseline needs at least 3 samples, found {samples}")
    penalty = np.zeros((3, samples), order="F")
    # Each second difference (1, -2, 1) adds its outer product to the diagonals.
    for offset, value in enumerate((1.0, -2.0, 1.0)):
        penalty[0, offset : samples - 2 + offset] += value * value
    for offset, value in enumerate((-2.0, -2.0)):
        penalty[1, offset : samples - 2 + offset] += value
    penalty[2, : samples - 2] = 1.0
    penalty *= smoothness
    matrix = penalty.copy(order="F")
    matrix[0] += 1.0
    return penalty, _factorise(matrix)


def _factorise(matrix: Float[np.ndarray, "3 T"]) -> Float[np.ndarray, "3 T"]:
    """Cholesky factor, written over `matrix`, which must be in Fortran order."""
    factor, info = dpbtrf(matrix, lower=1, overwrite_ab=1)
    if info:
        raise ValueError(f"baseline: the system is not positive definite at sample {info - 1}")
    return factor


def _solve(factor: Float[np.ndarray, "3 T"], right: np.ndarray) -> np.ndarray:
    return dpbtrs(factor, right, lower=1)[0]

"""What hiding a window of a lead changes, for a program whose outputs are sums."""

import numpy as np

from mmcl_jax.data.signals.ecg import EcgSettings
from mmcl_jax.inference.models import Column
from mmcl_jax.interpret import ecg as interpret_ecg
from mmcl_jax.interpret.occlusion import cosine_distance, occlude


class Linear:
    """A program whose two outputs are sums of weighted samples."""

    multiple = 8
    crops = 1
    settings = EcgSettings()
    columns = tuple(Column(name, "value", "", name, "mL", "", ()) for name in "ab")

    def __init__(self, weights):
        self.weights, self.sizes = weights, []

    def dispatch(self, ecg):
        self.sizes.append(len(ecg))
        return ecg.copy()

    def collect(self, outputs, count):
        return np.einsum("nlt,clt->nc", outputs[:count], self.weights)


def test_occlusion_puts_the_median_of_the_lead_in_the_place_of_a_window():
    generator = np.random.default_rng(0)
    ecg = generator.standard_normal((12, 70)).astype(np.float32)
    weights = generator.standard_normal((2, 12, 70))
    program = Linear(weights)
    # The last window is cut off where what is read ends.
    whole, hidden, starts = occlude(program, ecg, 20, 50)
    np.testing.assert_array_equal(starts, [0, 20, 40])
    np.testing.assert_allclose(whole, np.einsum("lt,clt->c", ecg, weights), rtol=1e-6)
    for lead in (0, 11):
        for number, (start, stop) in enumerate(((0, 20), (20, 40), (40, 50))):
            changed = ecg.copy()
            changed[lead, start:stop] = np.median(ecg[lead, :50])
            expected = np.einsum("lt,clt->c", changed, weights)
            np.testing.assert_allclose(hidden[lead, number], expected, rtol=1e-5, atol=1e-5)
    # One size, which is compiled once.
    assert set(program.sizes) == {64}


def test_cosine_distance():
    generator = np.random.default_rng(0)
    one = generator.standard_normal(5)
    found = cosine_distance(np.stack([3 * one, -one, np.zeros(5) + one[::-1]]), one)
    np.testing.assert_allclose(found[:2], [0, 2], atol=1e-12)
    assert 0 < found[2] < 2


def test_columns_are_chosen_by_name():
    program = Linear(None)
    assert interpret_ecg._chosen(program, ["b"]) == [1]
    assert interpret_ecg._chosen(program, []) == [0, 1]

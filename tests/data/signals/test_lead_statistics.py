import numpy as np
import pytest

from mmcl_jax.data.signals.lead_statistics import LeadSummary, lead_statistics


def test_summary_is_that_of_all_samples():
    signals = np.random.default_rng(0).normal(size=(5, 12, 400)) * np.arange(1, 13)[:, None]
    signals += np.arange(5)[:, None, None]
    summary = LeadSummary()
    for signal in signals:
        summary.add(lead_statistics(signal))
    found = summary.as_dict()
    assert found["records"] == 5
    for row, lead in ((0, "I"), (7, "V2")):
        samples = signals[:, row]
        assert found[lead]["mean"] == pytest.approx(samples.mean(), rel=1e-4)
        assert found[lead]["sd"] == pytest.approx(samples.std(), rel=1e-4)
        assert found[lead]["min"] == pytest.approx(samples.min(), rel=1e-5)
        assert found[lead]["max"] == pytest.approx(samples.max(), rel=1e-5)
        height = np.ptp(samples, axis=1).mean()
        assert found[lead]["peak_to_peak"] == pytest.approx(height, rel=1e-5)


def test_without_recordings():
    assert LeadSummary().as_dict() == {}

import numpy as np
import pytest

from mmcl_jax.data.signals.leads import LEADS, arrange, lead_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AVR", "aVR"),
        ("avl", "aVL"),
        ("aVF", "aVF"),
        ("i", "I"),
        (" III ", "III"),
        ("Lead II", "II"),
        ("lead_aVR", "aVR"),
        ("ECG V1", "V1"),
        ("MDC_ECG_LEAD_I", "I"),
        ("MDC_ECG_LEAD_V6", "V6"),
        ("DIII", "III"),
        ("D2", "II"),
        ("EKG V3", "V3"),
        ("D4", None),
        ("C4", "V4"),
        ("vx", None),
        ("-aVR", None),
        ("V7", None),
        ("", None),
    ],
)
def test_spellings(text, expected):
    assert lead_name(text) == expected


def test_every_standard_name_is_its_own_spelling():
    assert [lead_name(name) for name in LEADS] == list(LEADS)


def test_arranges_by_name_and_leaves_other_signals_out(rng):
    # MIMIC-IV-ECG has aVF before aVL.
    names = ["I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6", "vx"]
    signal = rng.standard_normal((13, 5))
    arranged, flags = arrange(signal, names)
    assert flags == ()
    np.testing.assert_array_equal(arranged[:4], signal[:4])
    np.testing.assert_array_equal(arranged[4], signal[5])
    np.testing.assert_array_equal(arranged[5], signal[4])
    np.testing.assert_array_equal(arranged[6:], signal[6:12])


def test_derives_limb_leads_from_i_and_ii(rng):
    # Potentials of right arm, left arm and left foot define all six limb leads.
    right, left, foot = rng.standard_normal((3, 7))
    chest = rng.standard_normal((6, 7))
    signal = np.stack([left - right, foot - right, *chest])
    arranged, flags = arrange(signal, ["I", "II", *LEADS[6:]])
    assert flags == ("derived from I and II: III, aVR, aVL, aVF",)
    np.testing.assert_allclose(arranged[2], foot - left, atol=1e-12)
    np.testing.assert_allclose(arranged[3], right - (left + foot) / 2, atol=1e-12)
    np.testing.assert_allclose(arranged[4], left - (right + foot) / 2, atol=1e-12)
    np.testing.assert_allclose(arranged[5], foot - (right + left) / 2, atol=1e-12)


def test_only_absent_leads_are_derived(rng):
    names = [name for name in LEADS if name != "aVL"]
    signal = rng.standard_normal((11, 4))
    arranged, flags = arrange(signal, names)
    assert flags == ("derived from I and II: aVL",)
    np.testing.assert_array_equal(arranged[3], signal[3])
    np.testing.assert_allclose(arranged[4], signal[0] - signal[1] / 2)


def test_missing_leads_are_named(rng):
    with pytest.raises(ValueError, match="leads II, V2 are missing; found I, III"):
        arrange(rng.standard_normal((10, 4)), [name for name in LEADS if name not in ("II", "V2")])


def test_a_lead_twice_is_an_error(rng):
    with pytest.raises(ValueError, match="lead II occurs twice"):
        arrange(rng.standard_normal((13, 4)), [*LEADS, "MDC_ECG_LEAD_II"])


@pytest.fixture
def rng():
    return np.random.default_rng(3)

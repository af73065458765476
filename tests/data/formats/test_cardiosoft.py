import made_cardiosoft
import numpy as np
import pytest

from mmcl_jax.data.formats import wfdb
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.subject import RefusedRecord

cardiosoft = pytest.importorskip("mmcl_jax.data.formats.cardiosoft")

COUNTS = np.random.default_rng(0).integers(-300, 300, (12, 700))


def write(tmp_path, content):
    path = tmp_path / "1000012_20205_2_0.xml"
    path.write_bytes(content)
    return path


def test_the_recording_is_read_and_nothing_else(tmp_path):
    found = cardiosoft.read(write(tmp_path, made_cardiosoft.xml(COUNTS, resolution="4.88")))
    np.testing.assert_allclose(found.signal, COUNTS * 4.88)
    assert found.names == made_cardiosoft.LEADS
    assert found.units == ("uV",) * 12
    assert found.rate == 500


def test_other_orders_of_the_leads(tmp_path):
    leads = made_cardiosoft.LEADS[::-1]
    found = cardiosoft.read(write(tmp_path, made_cardiosoft.xml(COUNTS, leads)))
    assert found.names == leads
    np.testing.assert_array_equal(found.signal, COUNTS * 5.0)


@pytest.mark.parametrize(
    ("values", "samples", "expected"),
    [
        ("1,2,3,4", 4, [1, 2, 3, 4]),
        # Formatting: as many numbers as the file says.
        (",1,,2,\n\t\t\t,3,4,", 4, [1, 2, 3, 4]),
        # Missing samples: the empty fields are counted.
        ("1,,3,4", 4, [1, np.nan, 3, 4]),
        ("1, \t,3,4,\n", 4, [1, np.nan, 3, 4]),
        ("1,,3,4,", "", [1, np.nan, 3, 4]),
        (" -1.5,+2,3e1,4", "", [-1.5, 2, 30, 4]),
    ],
)
def test_empty_fields(tmp_path, values, samples, expected):
    content = made_cardiosoft.xml([values] * 12, samples=samples, resolution="1")
    found = cardiosoft.read(write(tmp_path, content))
    np.testing.assert_array_equal(found.signal, [expected] * 12)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"strip": False}, "0 elements StripData, expected one"),
        ({"unit": "mVperLsb"}, "Resolution of StripData has the unit 'mVperLsb', expected 'uVp"),
        ({"resolution": ""}, "Resolution of StripData is '', expected a positive number"),
        ({"resolution": "-5"}, "Resolution of StripData is '-5'"),
        ({"rate": "fast"}, "SampleRate of StripData is 'fast'"),
        ({"rate": "nan"}, "SampleRate of StripData is 'nan'"),
        ({"samples": "many"}, "ChannelSampleCountTotal of StripData is 'many'"),
        ({"samples": 701}, "lead I: 700 samples, expected 701"),
        ({"samples": "9" * 5000}, "ChannelSampleCountTotal of StripData is '999"),
        ({"leads": ("I",) * 12}, "WaveformData 2 of StripData has the lead name 'I'"),
        ({"leads": ("",) * 12}, "WaveformData 1 of StripData has the lead name ''"),
    ],
)
def test_contradictory_recordings_are_refused(tmp_path, change, reason):
    with pytest.raises(RefusedRecord, match=reason):
        cardiosoft.read(write(tmp_path, made_cardiosoft.xml(COUNTS, **change)))


def test_unusable_samples_are_refused(tmp_path):
    rows = ["1,2,3"] * 12
    rows[3] = "1,2"
    with pytest.raises(RefusedRecord, match="leads of different numbers of samples: .*aVR 2"):
        cardiosoft.read(write(tmp_path, made_cardiosoft.xml(rows, samples="")))
    rows[3] = "1,x7,3"
    with pytest.raises(RefusedRecord, match="lead aVR: sample 2 is 'x7', no number"):
        cardiosoft.read(write(tmp_path, made_cardiosoft.xml(rows, samples=3)))
    rows[3] = "1,2\n3,4"
    with pytest.raises(RefusedRecord, match="lead aVR: sample 2 is '2.n3', no number"):
        cardiosoft.read(write(tmp_path, made_cardiosoft.xml(rows, samples=3)))
    rows[3] = " "
    with pytest.raises(RefusedRecord, match="lead aVR: 0 samples, expected some"):
        cardiosoft.read(write(tmp_path, made_cardiosoft.xml(rows, samples="")))
    with pytest.raises(RefusedRecord, match="StripData has no WaveformData"):
        cardiosoft.read(write(tmp_path, made_cardiosoft.xml([], (), samples=3)))


@pytest.mark.parametrize("name", ["SampleRate", "Resolution"])
def test_missing_elements_are_refused(tmp_path, name):
    head, strip = made_cardiosoft.xml(COUNTS).split(b"<StripData>")
    strip = strip.replace(name.encode(), b"Other")
    with pytest.raises(RefusedRecord, match=f"StripData has no {name}"):
        cardiosoft.read(write(tmp_path, head + b"<StripData>" + strip))


def test_unreadable_files_are_refused(tmp_path):
    path = tmp_path / "a.xml"
    with pytest.raises(RefusedRecord, match=r"a\.xml: the ECG is absent"):
        cardiosoft.read(path)
    path.touch()
    with pytest.raises(RefusedRecord, match="0 bytes, expected an ECG of at most 16 MiB"):
        cardiosoft.read(path)
    content = made_cardiosoft.xml(COUNTS)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RefusedRecord, match="not readable XML: no element found|unclosed token"):
        cardiosoft.read(path)
    # What it holds is ISO-8859-1 all the same.
    path.write_bytes(content.replace(b"ISO-8859-1", b"UTF-8"))
    with pytest.raises(RefusedRecord, match="not readable XML: not well-formed"):
        cardiosoft.read(path)
    path.write_bytes(content.replace(b"ISO-8859-1", b"klingon"))
    with pytest.raises(RefusedRecord, match="not readable XML: unknown encoding"):
        cardiosoft.read(path)
    path.write_bytes(b"<RestingECG/>")
    with pytest.raises(RefusedRecord, match="root element is 'RestingECG', expected 'Cardiology"):
        cardiosoft.read(path)
    with pytest.raises(RefusedRecord, match="cannot be read: Is a directory"):
        cardiosoft.read(tmp_path)


@pytest.mark.parametrize(
    "declaration",
    [
        b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>',
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        b'<!DOCTYPE x SYSTEM "http://localhost/x.dtd">',
    ],
)
def test_document_types_and_entities_are_refused(tmp_path, declaration):
    content = made_cardiosoft.xml(COUNTS).replace(b"<Card", declaration + b"<Card", 1)
    with pytest.raises(RefusedRecord, match="declares a document type or entities"):
        cardiosoft.read(write(tmp_path, content))


def test_too_large_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cardiosoft, "_MAX_SIZE", 2**20)
    with pytest.raises(RefusedRecord, match="2,097,152 bytes, expected an ECG of at most 1 MiB"):
        cardiosoft.read(write(tmp_path, bytes(2 * 2**20)))


def test_a_real_recording_comes_back(recordings, tmp_path):
    expected = wfdb.read(recordings / "ptbxl" / "records500" / "00000" / "00001_hr")
    # PTB-XL has 1 uV per step, so this is exact.
    counts = np.rint(expected.signal * 1000).astype(int)
    content = made_cardiosoft.xml(counts, expected.names, resolution="1")
    found = cardiosoft.read(write(tmp_path, content))
    np.testing.assert_allclose(found.signal / 1000, expected.signal, atol=1e-9)
    first, flags = ecg.prepare("a", found)
    second, _ = ecg.prepare("b", expected)
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert not any("unit" in flag for flag in flags)

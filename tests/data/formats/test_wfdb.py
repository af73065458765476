import os

import numpy as np
import pytest

from mmcl_jax.data.formats import wfdb
from mmcl_jax.data.subject import RefusedRecord

# Of the reference reader.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")


@pytest.fixture
def digital():
    return np.random.default_rng(0).integers(-3000, 3000, (3, 40)).astype("<i2")


def write(folder, digital, *, layout="16", scale="1000.0(0)/mV", prefix=b"", zero=0):
    """A record of one signal file, with checksums; returns its header."""
    (folder / "a.dat").write_bytes(prefix + digital.T.tobytes())
    lines = [f"a {len(digital)} 500 {digital.shape[1]}"]
    for row, name in zip(digital, ("I", "II", "chest lead 1"), strict=False):
        total = row.sum(dtype=np.int64) % 65536
        lines.append(f"a.dat {layout} {scale} 16 {zero} {row[0]} {total} 0 {name}")
    header = folder / "a.hea"
    header.write_text("\n".join([*lines, "# Age: 60", "#Dx: 426783006"]) + "\n")
    return header


def edit(header, old, new):
    text = header.read_text()
    assert old in text
    header.write_text(text.replace(old, new))


def test_reads_signals_names_units_rate_and_comments(tmp_path, digital):
    found = wfdb.read(write(tmp_path, digital))
    np.testing.assert_allclose(found.signal, digital / 1000)
    assert found.names == ("I", "II", "chest lead 1")
    assert found.units == ("mV",) * 3
    assert found.rate == 500
    assert found.comments == ("Age: 60", "Dx: 426783006")


def test_the_suffix_may_be_left_out(tmp_path, digital):
    write(tmp_path, digital)
    assert wfdb.read(tmp_path / "a").signal.shape == (3, 40)


@pytest.mark.parametrize(
    ("scale", "gain", "baseline", "unit"),
    [
        ("1000.0(0)/mV", 1000, 0, "mV"),
        ("200(-5)/uV", 200, -5, "uV"),
        ("4.88e2/mv", 488, 7, "mv"),
        ("2000", 2000, 7, "mV"),
        ("0", 200, 7, "mV"),
    ],
)
def test_gain_baseline_and_unit(tmp_path, digital, scale, gain, baseline, unit):
    # The ADC zero stands in for an absent baseline.
    found = wfdb.read(write(tmp_path, digital, scale=scale, zero=7))
    np.testing.assert_allclose(found.signal, (digital.astype(float) - baseline) / gain)
    assert set(found.units) == {unit}


def test_a_line_with_a_file_and_format_only_takes_the_defaults(tmp_path, digital):
    header = write(tmp_path, digital)
    header.write_text("a 3\n" + "a.dat 16\n" * 3)
    found = wfdb.read(header)
    np.testing.assert_allclose(found.signal, digital / 200)
    assert (found.rate, found.units, found.names) == (250, ("mV",) * 3, ("",) * 3)


def test_counter_frequency_is_not_the_rate(tmp_path, digital):
    header = write(tmp_path, digital)
    edit(header, "a 3 500 40", "a 3 360.5/1000(3) 40 12:00:00")
    assert wfdb.read(header).rate == 360.5


def test_byte_offset(tmp_path, digital):
    header = write(tmp_path, digital, layout="16x1+24", prefix=b"\x7f" * 24)
    np.testing.assert_allclose(wfdb.read(header).signal, digital / 1000)


def test_several_signal_files(tmp_path, digital):
    header = write(tmp_path, digital[:2])
    (tmp_path / "b.dat").write_bytes(digital[2].tobytes())
    edit(header, "a 2 500 40", "a 3 500 40")
    edit(header, "# Age", "b.dat 16 10(0)/uV 16 0 0 " + f"{digital[2].sum()} 0 vx\n# Age")
    found = wfdb.read(header)
    np.testing.assert_allclose(found.signal[:2], digital[:2] / 1000)
    np.testing.assert_allclose(found.signal[2], digital[2] / 10)
    assert found.units == ("mV", "mV", "uV")


def test_the_smallest_integer_means_missing(tmp_path, digital):
    digital[1, 5] = -32768
    found = wfdb.read(write(tmp_path, digital)).signal
    assert np.argwhere(np.isnan(found)).tolist() == [[1, 5]]


def test_checksum_may_carry_a_sign(tmp_path, digital):
    digital[0] = -20000
    header = write(tmp_path, digital)
    total = int(digital[0].sum(dtype=np.int64)) % 65536
    edit(header, f" {total} 0 I\n", f" {total - 65536} 0 I\n")
    assert wfdb.read(header).signal[0, 0] == -20


def test_a_wrong_checksum_is_refused(tmp_path, digital):
    header = write(tmp_path, digital)
    content = bytearray((tmp_path / "a.dat").read_bytes())
    content[2] ^= 1  # first sample of the second signal
    (tmp_path / "a.dat").write_bytes(content)
    with pytest.raises(RefusedRecord, match=r"checksum of signal II in a\.dat: \d+ expected"):
        wfdb.read(header)


def test_a_truncated_file_is_refused(tmp_path, digital):
    header = write(tmp_path, digital)
    (tmp_path / "a.dat").write_bytes((tmp_path / "a.dat").read_bytes()[:-1])
    with pytest.raises(
        RefusedRecord, match="240 bytes expected from the header, 239 found"
    ) as info:
        wfdb.read(header)
    assert info.value.path.endswith("a.dat")


def test_absent_files_are_refused(tmp_path, digital):
    with pytest.raises(RefusedRecord, match="header is absent"):
        wfdb.read(tmp_path / "b")
    header = write(tmp_path, digital)
    (tmp_path / "a.dat").unlink()
    with pytest.raises(RefusedRecord, match="signal file is absent"):
        wfdb.read(header)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("a.dat 16 ", "a.dat 8 ", "signal format 8 is not supported"),
        ("a.dat 16 ", "a.dat 16x2 ", "several samples per frame"),
        ("a.dat 16 ", "a.dat 16:3 ", "a skew"),
        ("a.dat 16 ", "../a.dat 16 ", "not a file beside the header"),
        ("a.dat 16 ", "/etc/passwd 16 ", "not a file beside the header"),
        ("a.dat 16 ", ". 16 ", "not a file beside the header"),
        ("a.dat 16 ", ".. 16 ", "not a file beside the header"),
        ("a.dat 16 ", "~ 16 ", "not a file beside the header"),
        ("a.dat 16 ", "a\0.dat 16 ", "not a file beside the header"),
        ("1000.0(0)", f"1000.0({10**400})", "unreadable signal line"),
        ("a.dat 16 ", f"a.dat 16+{10**30} ", "truncated"),
        ("a 3 500 40", f"a 3 500 {10**30}", "truncated"),
        ("a 3 500 40", "a 3 nan 40", "no signals, rate or samples"),
        ("1000.0(0)/mV", "fast", "unreadable signal line"),
        ("a 3 500 40", "a/4 3 500 40", "several segments"),
        ("a 3 500 40", "a 4 500 40", "3 signal lines, the first line says 4"),
        ("a 3 500 40", "a three", "unreadable record line"),
        ("a 3 500 40", "a 3 0 40", "no signals, rate or samples"),
    ],
)
def test_what_the_header_may_not_say(tmp_path, digital, old, new, reason):
    header = write(tmp_path, digital)
    edit(header, old, new)
    with pytest.raises(RefusedRecord, match=reason):
        wfdb.read(header)


def test_an_empty_header_is_refused(tmp_path):
    (tmp_path / "a.hea").write_text("# nothing\n")
    with pytest.raises(RefusedRecord, match="header is empty"):
        wfdb.read(tmp_path / "a.hea")


def test_real_records_as_the_reference_reader_reads_them(recordings):
    reference = pytest.importorskip("wfdb")
    headers = sorted((recordings / "cinc2021").glob("*.hea"))
    headers += sorted((recordings / "ptbxl").rglob("*.hea"))[::20]
    headers += sorted((recordings / "ptb").glob("*.hea"))
    assert len(headers) == 30 + 20 + 1
    for header in headers:
        expected = reference.rdrecord(str(header.with_suffix("")))
        found = wfdb.read(header)
        np.testing.assert_allclose(found.signal, expected.p_signal.T, rtol=0, atol=1e-12)
        assert found.names == tuple(expected.sig_name)
        assert found.units == tuple(expected.units)
        assert found.rate == expected.fs


@pytest.mark.parametrize("name", ["16", "24", "32", "61", "80", "160", "212"])
@pytest.mark.parametrize("samples", [40, 41])
def test_formats_as_the_reference_reader_reads_them(tmp_path, name, samples):
    reference = pytest.importorskip("wfdb")
    bits = {"212": 12}.get(name) or {"80": 8, "24": 24, "32": 32}.get(name, 16)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    digital = np.random.default_rng(1).integers(low + 1, high, (samples, 3))
    digital[7, 1] = low  # nothing recorded
    if name in ("61", "160"):  # the reference does not write these
        content = digital.astype(">i2") if name == "61" else (digital + 2**15).astype("<u2")
        (tmp_path / "a.dat").write_bytes(content.tobytes())
        sums = digital.sum(axis=0) % 65536
        lines = [f"a.dat {name} 100(-3)/uV {bits} 0 0 {total} 0 I" for total in sums]
        (tmp_path / "a.hea").write_text("\n".join([f"a 3 500 {samples}", *lines]) + "\n")
    else:
        reference.wrsamp(
            "a",
            fs=500,
            units=["uV"] * 3,
            sig_name=["I", "II", "V1"],
            d_signal=digital,
            fmt=[name] * 3,
            adc_gain=[100.0] * 3,
            baseline=[-3] * 3,
            write_dir=str(tmp_path),
        )
    found = wfdb.read(tmp_path / "a")
    expected = reference.rdrecord(str(tmp_path / "a"))
    np.testing.assert_allclose(found.signal, expected.p_signal.T, rtol=1e-12)
    assert np.argwhere(np.isnan(found.signal)).tolist() == [[1, 7]]
    (tmp_path / "a.dat").write_bytes((tmp_path / "a.dat").read_bytes()[:-1])
    with pytest.raises(RefusedRecord, match="truncated"):
        wfdb.read(tmp_path / "a")


def test_formats_may_not_be_mixed_in_a_file_and_the_length_may_come_from_the_file(
    tmp_path, digital
):
    header = write(tmp_path, digital)
    edit(header, "a 3 500 40", "a 3 500")
    assert wfdb.read(header).signal.shape == (3, 40)
    header.write_text(header.read_text().replace("a.dat 16 ", "a.dat 61 ", 1))
    with pytest.raises(RefusedRecord, match="formats 16, 61 in one file"):
        wfdb.read(header)


def test_only_the_seconds_asked_for_are_returned_but_all_is_checked(tmp_path, digital):
    header = write(tmp_path, digital)
    np.testing.assert_allclose(wfdb.read(header, seconds=0.02).signal, digital[:, :10] / 1000)
    assert wfdb.read(header, seconds=10).signal.shape == (3, 40)
    content = bytearray((tmp_path / "a.dat").read_bytes())
    content[-2] ^= 1
    (tmp_path / "a.dat").write_bytes(content)
    with pytest.raises(RefusedRecord, match="checksum of signal chest lead 1"):
        wfdb.read(header, seconds=0.02)


def test_headers_in_latin_1_and_with_any_bytes(tmp_path, digital):
    header = write(tmp_path, digital, scale="1000.0(0)/\N{MICRO SIGN}V")
    header.write_bytes(header.read_text().encode("latin-1") + b"# \xff\xfe caf\xe9\n")
    assert wfdb.read(header).units == ("\N{MICRO SIGN}V",) * 3
    rng = np.random.default_rng(0)
    for length in (1, 50, 5000):
        header.write_bytes(rng.bytes(length))
        with pytest.raises(RefusedRecord):
            wfdb.read(header)
    header.write_bytes(b"a" * (2**20 + 1))
    with pytest.raises(RefusedRecord, match="no header"):
        wfdb.read(header)


def test_real_record_of_two_files_and_1000_hz(recordings):
    found = wfdb.read(recordings / "ptb" / "s0010_re")
    assert found.signal.shape == (15, 38400)
    assert found.names[:4] == ("i", "ii", "iii", "avr")
    assert found.names[12:] == ("vx", "vy", "vz")
    assert found.signal[0, 0] == -489 / 2000
    assert found.comments[0] == "age: 81"


def test_two_real_files_hold_the_same_signal(recordings):
    first, second = (wfdb.read(recordings / "cinc2021" / name) for name in ("E07509", "E07510"))
    np.testing.assert_array_equal(first.signal, second.signal)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.hea").mkdir()
    with pytest.raises(RefusedRecord, match="cannot be read"):
        wfdb.read(tmp_path / "a.hea")
    (tmp_path / "b.hea").write_text("b 1 500 10\nb.dat 16 1000/mV 16 0 0 0 0 I\n")
    (tmp_path / "b.dat").mkdir()
    with pytest.raises(RefusedRecord, match="b.dat: cannot be read"):
        wfdb.read(tmp_path / "b.hea")


def test_pipes_do_not_hold_up_a_preparation(tmp_path, digital):
    header = write(tmp_path, digital)
    (tmp_path / "a.dat").unlink()
    os.mkfifo(tmp_path / "a.dat")
    os.mkfifo(tmp_path / "b.hea")
    for path in (header, tmp_path / "b.hea"):
        with pytest.raises(RefusedRecord, match="cannot be read: it is no file"):
            wfdb.read(path)

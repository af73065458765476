import datetime
import math

import pytest

from mmcl_jax.data.targets import icd10
from mmcl_jax.data.targets.labels import Label

CAD, AF, DM = icd10.DISEASES


def test_the_diseases_of_the_paper():
    assert [disease.label.name for disease in icd10.DISEASES] == ["CAD", "AF", "DM"]
    assert all(CAD.includes(code) for code in ("I20", "I200", "I249", "I250", "I2519", "I259"))
    assert not any(CAD.includes(code) for code in ("I19", "I26", "I269", "J20", "R20", "I2"))
    assert AF.includes("I48")
    assert AF.includes("I489")
    assert not AF.includes("I49")
    assert all(DM.includes(code) for code in ("E10", "E119", "E149"))
    assert not any(DM.includes(code) for code in ("E09", "E15", "E162"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("I251", "I251"),
        ("I25.1", "I251"),
        (" i25 ", "I25"),
        ("I25.1 Atherosclerotic heart disease", "I251"),
        ("M79.19", "M7919"),
        ("C81.9", "C819"),
    ],
)
def test_codes_in_any_spelling(text, code):
    assert icd10.normalise(text) == code


@pytest.mark.parametrize("text", ["", "I2", "251", "2015-03-02", "I25123456", "Atherosclerosis"])
def test_what_is_no_code(text):
    with pytest.raises(ValueError, match="is no ICD-10 code"):
        icd10.normalise(text)


def disease(*codes, when="any"):
    return icd10.Disease(Label("X", "binary", "disease"), codes, when)


def test_prefixes_and_ranges():
    found = disease("I25.1", "E10-F03")
    assert found.includes("I251")
    assert found.includes("I2510")
    assert not found.includes("I25")
    assert not found.includes("I252")
    assert [found.includes(code) for code in ("E099", "E10", "E999", "F03", "F039", "F04")] == [
        *(False, True, True, True, True, False)
    ]


@pytest.mark.parametrize(
    "text",
    ["", "I", "I2", "25.1", "I20-25", "I20.1-I25", "I20 - I25", "*", "I25.", "I48|I49", "i48"],
)
def test_bad_patterns(text):
    with pytest.raises(ValueError, match="disease 'X': .* is neither the start of an ICD-10 code"):
        disease(text)


def test_a_range_must_not_run_backwards():
    with pytest.raises(ValueError, match="the range 'I25-I20' ends before it starts"):
        disease("I25-I20")


def day(text):
    return datetime.date.fromisoformat(text)


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        (("2010-01-01", "2012-01-01"), (1, 1, math.nan)),
        (("2015-05-01", "2020-01-01"), (1, 1, math.nan)),
        (("2016-01-01", "2020-01-01"), (1, 0, 1)),
        ((None, "2020-01-01"), (1, math.nan, math.nan)),
        (("2016-01-01",), (1, math.nan, math.nan)),
    ],
)
def test_when_a_diagnosis_counts(dates, expected):
    dates = [date and day(date) for date in dates]
    visit = day("2015-05-01")
    for when, value in zip(icd10.PERIODS, expected, strict=True):
        found = disease("I20-I25", when=when).value(["I251", "I209"], dates, visit)
        assert found == value or (math.isnan(found) and math.isnan(value))
        # Other diseases, and nobody without diagnoses, depend on no date.
        assert disease("I48", when=when).value(["I251", "I209"], dates, visit) == 0
        assert disease("I48", when=when).value([], [], None) == 0


def test_definitions_from_a_file(tmp_path):
    path = tmp_path / "diseases.toml"
    path.write_text(
        '[CAD]\ncodes = ["I20-I25"]\n'
        '[HF]\ncodes = ["i50", "I11.0"]\ndescription = "heart failure"\nwhen = "after"\n'
    )
    cad, hf = icd10.read_definitions(path)
    assert (cad.codes, cad.when) == (("I20-I25",), "any")
    assert cad.label == Label("CAD", "binary", "disease", "", "CAD (ICD-10 I20-I25)")
    assert (hf.codes, hf.when) == (("I50", "I11.0"), "after")
    assert hf.label.description == "heart failure (ICD-10 I50, I11.0, diagnosed after the visit)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no disease"),
        ("[CAD", "not readable TOML"),
        ("CAD = 1", r"'CAD' is 1, expected a table such as \[CAD\]"),
        ("[CAD]\ncode = []", "disease 'CAD': unknown entries code, expected codes"),
        ("[CAD]", "disease 'CAD': codes is None, expected a list"),
        ("[CAD]\ncodes = 'I20'", "disease 'CAD': codes is 'I20', expected a list"),
        ("[CAD]\ncodes = [20]", r"disease 'CAD': codes is \[20\]"),
        ("[CAD]\ncodes = []", "disease 'CAD' has no codes"),
        ("[CAD]\ncodes = ['I2x']", "disease 'CAD': 'I2X' is neither"),
        ("[CAD]\ncodes = ['I20']\nwhen = 'never'", "disease 'CAD': when is 'never', expected one"),
        ("[CAD]\ncodes = ['I20']\ndescription = 1", "disease 'CAD': description is 1"),
        ("[LVEF]\ncodes = ['I20']", "disease 'LVEF': another label has that name"),
    ],
)
def test_unusable_definitions(tmp_path, text, reason):
    path = tmp_path / "diseases.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"diseases\.toml: .*{reason}"):
        icd10.read_definitions(path)


def test_absent_and_binary_definitions(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the definitions of diseases"):
        icd10.read_definitions(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"x\.toml: not readable TOML"):
        icd10.read_definitions(tmp_path / "x.toml")

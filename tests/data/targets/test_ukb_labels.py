import math

import pytest

from mmcl_jax.data.targets import icd10, labels
from mmcl_jax.data.targets.labels import Label

ukb_labels = pytest.importorskip("mmcl_jax.data.targets.ukb_labels")
ukb_table = pytest.importorskip("mmcl_jax.data.formats.ukb_table")


def row(**cells):
    """f41270_0='I10 I251' is field 41270, instance 0."""
    pairs = {tuple(map(int, key[1:].split("_"))): text.split(" ") for key, text in cells.items()}
    return ukb_table.Row("1", pairs)


def test_fields_of_the_labels():
    numbers = {q.label.name: q.field for q in ukb_labels.PHENOTYPES + ukb_labels.DEMOGRAPHICS}
    assert len(numbers) == 65
    assert [label.name for label in ukb_labels.UkbLabels().labels] == [
        label.name for label in labels.DISEASES + labels.PHENOTYPES + labels.DEMOGRAPHICS
    ]
    expected = {"LVEDV": 24100, "LVESV": 24101, "LVSV": 24102, "LVEF": 24103, "LVCO": 24104}
    expected |= {"LVM": 24105, "RVEDV": 24106, "RVESV": 24107, "RVSV": 24108, "RVEF": 24109}
    expected |= {"WT_1": 24124, "WT_16": 24139, "WT_global": 24140}
    expected |= {"Ecc_1": 24141, "Ecc_16": 24156, "Ecc_global": 24157}
    expected |= {"Err_1": 24158, "Err_16": 24173, "Err_global": 24174}
    expected |= {"sex": 31, "age": 21003, "weight": 21002, "height": 50}
    assert {name: numbers[name] for name in expected} == expected


def test_values_come_from_the_visit():
    cells = row(f31_0="1", f21003_0="55", f21003_2="64", f21003_3="67.0", f24103_3="58.5")
    recipe = ukb_labels.UkbLabels(("demographics", "phenotypes"))
    assert recipe.values(cells, 2) == {"sex": 1, "age": 64}
    assert recipe.values(cells, 3) == {"sex": 1, "age": 67, "LVEF": 58.5}
    assert recipe.fields({2}) >= {(31, 0), (21003, 2), (24103, 2)}
    assert (41270, 0) not in recipe.fields({2})


def test_diseases_of_any_date():
    recipe = ukb_labels.UkbLabels(("diseases",))
    assert recipe.fields({2, 3}) == {(41270, 0)}
    assert recipe.values(row(f41270_0="A099 I251 E119"), 2) == {"CAD": 1, "AF": 0, "DM": 1}
    # Nobody is without a row for lack of diagnoses.
    assert recipe.values(row(), 2) == {"CAD": 0, "AF": 0, "DM": 0}


def test_dates_stay_with_their_diagnoses():
    later = icd10.Disease(Label("late", "binary", "disease"), ("I20-I25",), "after")
    earlier = icd10.Disease(Label("early", "binary", "disease"), ("E11",), "before")
    recipe = ukb_labels.UkbLabels(("diseases",), (later, earlier))
    assert recipe.fields({2}) == {(41270, 0), (41280, 0), (53, 2)}
    gaps = row(f41270_0="E119  I251", f41280_0="2010-01-01  2020-01-01", f53_2="2015-05-01")
    assert recipe.values(gaps, 2) == {"late": 1, "early": 1}
    unknown = row(f41270_0="E119 I251", f41280_0="2010-01-01", f53_2="2015-05-01")
    assert recipe.values(unknown, 2) == {"early": 1}
    assert recipe.values(row(f41270_0="E119", f41280_0="2010-01-01"), 2) == {"late": 0}
    stray = row(f41270_0="E119", f41280_0="2010-01-01 2012-01-01", f53_2="2015-05-01")
    with pytest.raises(ValueError, match=r"\(field 41280\): '2012-01-01' belongs to no diagnosis"):
        recipe.values(stray, 2)
    wrong = row(f41270_0="E119", f41280_0="soon", f53_2="2015-05-01")
    with pytest.raises(ValueError, match=r"\(field 41280\): 'soon' is no date"):
        recipe.values(wrong, 2)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"f31_0": "64"}, r"sex \(field 31, instance 0\) is '64', expected 0 or 1"),
        ({"f31_0": "0.5"}, "sex .* is '0.5', expected 0 or 1"),
        ({"f21003_2": "1"}, r"age \(field 21003, instance 2\) is '1', expected a number from 18"),
        ({"f21003_2": "old"}, "age .* is 'old'"),
        ({"f21003_2": "64 65"}, r"age .* is '64 \| 65'"),
        ({"f50_2": "72.5"}, "height .* is '72.5', expected a number from 100 to 250 cm"),
        ({"f24103_2": "nan"}, "LVEF .* is 'nan', expected a number from 0 to 100 %"),
        ({"f24103_2": "150"}, "LVEF .* is '150'"),
        ({"f24100_2": "60", "f24101_2": "140"}, "LVESV is 140 mL, more than LVEDV with 60 mL; are"),
        ({"f41270_0": "2015-03-02"}, r"diagnoses \(field 41270\): '2015-03-02' is no ICD-10 code"),
    ],
)
def test_impossible_values(cells, reason):
    with pytest.raises(ValueError, match=reason):
        ukb_labels.UkbLabels().values(row(**cells), 2)


def test_meanings_in_place_of_codes():
    recipe = ukb_labels.UkbLabels(("diseases", "demographics"))
    cells = {(31, 0): ["Female"], (41270, 0): ["I48.0 Paroxysmal atrial fibrillation"]}
    found = recipe.values(ukb_table.Row("1", cells), 2)
    assert found == {"sex": 0, "CAD": 0, "AF": 1, "DM": 0}


def test_unknown_groups():
    with pytest.raises(ValueError, match="labels ages: unknown, expected some of diseases, dem"):
        ukb_labels.UkbLabels(("ages",))


def test_missing_fields_are_named(tmp_path):
    path = tmp_path / "ukb.csv"
    path.write_text("eid,31-0.0,21003-0.0,21002-2.0,50-2.0\n")
    table = ukb_table.UkbTable(path)
    recipe = ukb_labels.UkbLabels(("diseases", "demographics"))
    with pytest.raises(
        ValueError, match=r"2 fields have no column for instance 0, 2, 3: 21003, 41270\. Export"
    ):
        recipe.check(table, {2, 3})
    path.write_text("eid,31-0.0,21003-2.0,21002-2.0,50-2.0,41270-0.0\n")
    # A visit without columns is a visit without values, not a mistake.
    recipe.check(ukb_table.UkbTable(path), {2, 3})
    assert not any(map(math.isnan, recipe.values(row(), 3).values()))

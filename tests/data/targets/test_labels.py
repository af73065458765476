"""Names, order and round trip of the labels."""

import json

import pytest

from mmcl_jax.data.targets import labels


def test_there_are_61_phenotypes_in_the_order_of_the_paper():
    names = [label.name for label in labels.PHENOTYPES]
    assert len(names) == 61
    assert names[:10] == [
        *("LVEDV", "LVESV", "LVSV", "LVEF", "LVCO", "LVM"),
        *("RVEDV", "RVESV", "RVSV", "RVEF"),
    ]
    assert names[10] == "WT_1"
    assert names[26] == "WT_global"
    assert names[27:44] == [*(f"Ecc_{segment}" for segment in range(1, 17)), "Ecc_global"]
    assert names[44] == "Err_1"
    assert names[60] == "Err_global"


def test_names_are_unique_and_regression_labels_have_units():
    everything = labels.DISEASES + labels.PHENOTYPES + labels.DEMOGRAPHICS
    assert len({label.name for label in everything}) == len(everything) == 68
    assert all(label.unit for label in everything if label.kind == "regression")
    assert [label.name for label in everything if label.kind == "binary"] == [
        *("CAD", "AF", "DM"),
        "sex",
    ]


def test_strain_is_in_per_cent_and_thickness_in_millimetres():
    units = {label.group: label.unit for label in labels.PHENOTYPES if label.group not in "LV RV"}
    assert units == {"WT": "mm", "Ecc": "%", "Err": "%"}


def test_json_round_trip():
    text = json.dumps(labels.to_json(labels.PHENOTYPES + labels.DISEASES))
    assert labels.from_json(json.loads(text)) == labels.PHENOTYPES + labels.DISEASES


RHYTHM = labels.Label("rhythm", "multiclass", "rhythm", classes=("SR", "AF", "VT"))


def test_multiclass_label():
    assert RHYTHM.outputs == ("rhythm: SR", "rhythm: AF", "rhythm: VT")
    assert labels.DISEASES[0].outputs == ("CAD",)
    records = labels.to_json((RHYTHM, labels.DISEASES[0]))
    assert records[0]["classes"] == ["SR", "AF", "VT"]
    # Cohorts without multi-class labels are written as they always were.
    assert set(records[1]) == {"name", "kind", "group", "unit", "description"}
    assert labels.from_json(json.loads(json.dumps(records))) == (RHYTHM, labels.DISEASES[0])
    for classes in ((), ("SR",), ("SR", "SR")):
        with pytest.raises(ValueError, match="'rhythm': classes are .*at least two different"):
            labels.Label("rhythm", "multiclass", "rhythm", classes=classes)
    with pytest.raises(ValueError, match="'CAD' is binary, so it has no classes"):
        labels.Label("CAD", "binary", "disease", classes=("no", "yes"))


def test_unknown_kind_names_the_label():
    with pytest.raises(
        ValueError, match="'grade': kind is 'ordinal'.*binary, multiclass, regression"
    ):
        labels.Label("grade", "ordinal", "other")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"name": "a", "kind": "binary"}], "fields group are missing"),
        ([{"name": "a", "kind": "binary", "group": "g", "units": "mm"}], "unknown fields units"),
        ([{"name": "a", "kind": "binary", "group": "g"}] * 2, "same name: a"),
    ],
)
def test_bad_json_is_refused(records, message):
    with pytest.raises(ValueError, match=message):
        labels.from_json(records)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "\\\\host\\x", "..", "a\\..\\x"])
def test_a_name_leads_nowhere(name):
    with pytest.raises(ValueError, match="is a path out of the folder"):
        labels.Label(name, "binary", "other")
    assert labels.Label("ST/T..", "binary", "other").name == "ST/T.."


@pytest.mark.parametrize("name", ["=1+1", "@SUM(A1)", "-CAD", "\tCAD"])
def test_a_name_is_no_formula(name):
    with pytest.raises(ValueError, match="as a spreadsheet's formula does; rename it"):
        labels.Label(name, "binary", "other")
    assert labels.Label("CAD-1", "binary", "other").name == "CAD-1"

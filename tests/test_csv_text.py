import pytest

from mmcl_jax.csv_text import neutral


@pytest.mark.parametrize(
    "cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-", "=HYPERLINK()"]
)
def test_a_formula_becomes_text(cell):
    assert neutral(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "r001", "a=1", "-0.5", "+3", "-1e-9", "-inf", 3, -0.5, None])
def test_names_and_numbers_stay(cell):
    assert neutral(cell) is cell

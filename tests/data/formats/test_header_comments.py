import pytest

from mmcl_jax.data.formats.header_comments import comment, demographics


@pytest.mark.parametrize(
    ("comments", "expected"),
    [
        (["Age: 56", "Sex: Male"], {"age": 56, "sex": 1}),
        (["age: 81", "sex: female"], {"age": 81, "sex": 0}),
        (["<age>: 65 <sex>: F <diagnoses> Coronary artery disease"], {"age": 65, "sex": 0}),
        (["Age: 7.5 years", "Sex : m"], {"age": 7.5, "sex": 1}),
        (["Age: NaN", "Sex: Unknown", "Dx: 1"], {}),
        (["Lineage: 3", "Infarction age: 4", "Sexual history: none"], {}),
        ([], {}),
    ],
)
def test_age_and_sex_in_the_spellings_of_the_open_databases(comments, expected):
    assert demographics(comments) == (expected, ())


@pytest.mark.parametrize("text", ["-1", "300", "old", "1e400"])
def test_an_impossible_age_is_left_out_and_said(text):
    assert demographics([f"Age: {text}", "Sex: 3"]) == (
        {},
        (f"age left out: '{text}' in the header", "sex left out: '3' in the header"),
    )


def test_a_comment_by_name():
    assert comment(["Rx: a", "Dx: 1,2 "], "Dx") == "1,2"
    assert comment(["Rx: a"], "Dx") is None

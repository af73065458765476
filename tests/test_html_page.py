"""Every text of a page is escaped, wherever it is put."""

import html.parser

import pytest

from mmcl_jax import html_page

HOSTILE = "<script>alert(1)</script>\"' onload='x"


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.attributes = set(), []

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.attributes += [name for name, _ in attrs]


def tags(text):
    parser = Tags()
    parser.feed(text)
    assert not [name for name in parser.attributes if name.startswith("on")]
    return parser.found


@pytest.mark.parametrize(
    "made",
    [
        html_page.paragraph(HOSTILE),
        html_page.heading(HOSTILE),
        html_page.table((HOSTILE, "b"), [(HOSTILE, 1)]),
        html_page.terms([(HOSTILE, HOSTILE)]),
        html_page.picture(b"", HOSTILE, HOSTILE),
        html_page.details(HOSTILE, HOSTILE),
        html_page.code(HOSTILE),
        html_page.join(HOSTILE, html_page.paragraph(HOSTILE)),
        html_page.page(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE, HOSTILE)]),
    ],
)
def test_text_of_unknown_origin_adds_no_tag_and_no_attribute(made):
    assert "script" not in tags(made)
    assert "alert(1)" in made


def test_a_page_asks_for_nothing_and_runs_nothing():
    page = html_page.page("t", html_page.paragraph("h"), [])
    assert "default-src 'none'; img-src data:" in page
    assert "http" not in page.replace("http-equiv", "")

"""The HTML of the report: one page, no request to anywhere, light and dark, readable on a phone.

Every function escapes the text it is given; `Html` marks text that is already HTML.
"""

import base64
import html
from collections.abc import Sequence


class Html(str):
    """Text that is HTML already."""


def page(title: str, header: Html, sections: Sequence[tuple[str, str, Html]]) -> str:
    """The whole document; a section is (anchor, heading, content)."""
    links = " ".join(f'<a href="#{escape(a)}">{escape(heading)}</a>' for a, heading, _ in sections)
    body = "\n".join(
        f'<section id="{escape(anchor)}"><h2>{escape(heading)}</h2>\n{escape(content)}\n</section>'
        for anchor, heading, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<header>
{escape(header)}
<nav>{links}</nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def escape(text: object) -> Html:
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def join(*parts: Html | str) -> Html:
    return Html("\n".join(escape(part) for part in parts if part))


def paragraph(text: str, kind: str = "") -> Html:
    return Html(f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>")


def heading(text: str) -> Html:
    return Html(f"<h3>{escape(text)}</h3>")


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    bold: Sequence[int] = (),
    numbers: Sequence[int] = (),
) -> Html:
    """A table that scrolls sideways on narrow screens.

    Args:
        bold: rows that stand out.
        numbers: columns whose digits are aligned on the right.
    """
    kinds = [' class="number"' if column in numbers else "" for column in range(len(header))]
    head = "".join(
        f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, header, strict=True)
    )
    body = []
    for number, row in enumerate(rows):
        cells = "".join(
            f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)
        )
        body.append(f"<tr{' class=mean' if number in bold else ''}>{cells}</tr>")
    return Html(
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(body)
        + "</tbody></table></div>"
    )


def terms(pairs: Sequence[tuple[str, object]]) -> Html:
    """A list of names and values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return Html(f"<dl>{rows}</dl>")


def picture(png: bytes, alt: str, caption: str = "") -> Html:
    data = base64.b64encode(png).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(
        f'<figure><div class="wide"><img alt="{escape(alt)}" '
        f'src="data:image/png;base64,{data}"></div>{below}</figure>'
    )


def details(summary: str, content: Html) -> Html:
    return Html(f"<details><summary>{escape(summary)}</summary>\n{escape(content)}\n</details>")


def code(text: str) -> Html:
    return Html(f'<div class="wide"><pre>{escape(text)}</pre></div>')


_CSS = """
:root { color-scheme: light dark; --ink: #1c2430; --quiet: #5a6675; --page: #ffffff;
  --card: #f4f6f8; --line: #d5dbe2; --link: #0b5cad; --warn: #fff3d6; --warn-line: #d99a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --quiet: #a3afbd; --page: #14181e;
  --card: #1d232b; --line: #36404c; --link: #7db8f5; --warn: #3a2f12; --warn-line: #d99a00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 1rem 1.25rem 4rem; background: var(--page);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 1rem 0; }
p { margin: .5rem 0; max-width: 46rem; }
.quiet, figcaption { color: var(--quiet); font-size: .875rem; }
.note { background: var(--warn); border-left: 4px solid var(--warn-line); padding: .6rem .9rem;
  border-radius: 4px; max-width: none; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .875rem; margin: .5rem 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 600; }
tr.mean td { font-weight: 600; }
th.number, td.number { text-align: right; }
th.span { text-align: center; padding-right: 0; }
table.paper { font-size: .8125rem; }
table.paper td, table.paper th { padding-right: .5rem; }
table.paper td.first, table.paper th.first, th.span { padding-left: .6rem; }
table.paper u { text-underline-offset: .2em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem;
  font-size: .875rem; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
img { display: block; max-width: max(100%, 760px); height: auto;
  background: #ffffff; border-radius: 4px; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--link); }
pre { background: var(--card); padding: .75rem; border-radius: 4px; font-size: .8125rem;
  line-height: 1.4; margin: .5rem 0; min-width: min-content; }
@media (max-width: 600px) { body { padding: .5rem .75rem 3rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; } details { display: block; } }
"""

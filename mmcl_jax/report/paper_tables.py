"""Tables I to V: their cells, and the cells as HTML, LaTeX and CSV.

A cell holds our number and the published one. Best and second best are marked in each column of
either, among the numbers as they are printed.
"""

import dataclasses
import math
from collections.abc import Sequence

from mmcl_jax.html_page import Html, escape, join, paragraph
from mmcl_jax.report.paper_layout import PaperTable, Row, published
from mmcl_jax.report.paper_results import GROUP_MEMBERS, Results, Value
from mmcl_jax.report.paper_runs import Key

BEST, SECOND = 1, 2
_CROSS, _TICK = "✗", "✓"


@dataclasses.dataclass(frozen=True)
class Number:
    """A printed number: '73.00', '0.30' ('' for none) and its place among those that are ranked."""

    mean: str
    sd: str = ""
    rank: int = 0


@dataclasses.dataclass(frozen=True)
class Cell:
    """Ours and published; None for an empty cell. `value` is ours unrounded, `n` its records."""

    ours: Number | None
    published: Number | None
    value: Value | None
    n: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class FilledTable:
    """A table of the paper with our numbers: cells by row and column.

    `counts` says how many test records are behind each column.
    """

    layout: PaperTable
    cells: tuple[tuple[Cell, ...], ...]
    counts: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """None of our runs is in it."""
        return all(cell.ours is None for row in self.cells for cell in row)


def fill(layout: PaperTable, results: Results) -> FilledTable:
    """The table with what the runs hold, all labels of the training set used."""
    known = published()
    columns, described = [], []
    for target in layout.targets:
        keys = [Key(row.method) for row in layout.rows]
        values = [results.value(key, target, layout.metric) for key in keys]
        counts = [tuple(results.n(key, target)) for key in keys]
        positives = [n for key in keys for n in results.positives(key, target)]
        if n := [n for count in counts for n in count]:
            members, every = results.members(target), GROUP_MEMBERS.get(target, ())
            of_group = "" if len(members) == len(every) else f" of {len(every)}"
            labels = f"{len(members)}{of_group} labels"
            more = labels if every else f"{_range(positives)} with the disease"
            described.append(f"{target} {_range(n)} ({more})")
        ours = [None if value is None else _printed(value, layout.metric) for value in values]
        theirs = [known.get((layout.number, row.method, target)) for row in layout.rows]
        theirs = [None if pair is None else Number(*pair) for pair in theirs]
        ours, theirs = _ranked(ours, layout.rows), _ranked(theirs, layout.rows)
        columns.append([Cell(*parts) for parts in zip(ours, theirs, values, counts, strict=True)])
    return FilledTable(layout, tuple(zip(*columns, strict=True)), tuple(described))


def table_html(table: FilledTable) -> Html:
    """Two rows of header; text on the left, numbers aligned on the right."""
    layout = table.layout
    names = ("modality", "model", *layout.marks)
    top = "".join(f'<th rowspan="2">{escape(name)}</th>' for name in names)
    top += "".join(f'<th colspan="2" class="span">{escape(name)}</th>' for name in layout.targets)
    top += '<th rowspan="2" class="number">seeds</th>'
    below = '<th class="number first">ours</th><th class="number">paper</th>' * len(layout.targets)
    body = []
    for row, cells in zip(layout.rows, table.cells, strict=True):
        texts = (row.modality, row.model, *_marks(row, _TICK, _CROSS))
        line = "".join(f"<td>{escape(text)}</td>" for text in texts)
        for cell in cells:
            line += f'<td class="number first">{_html(cell.ours)}</td>'
            line += f'<td class="number">{_html(cell.published)}</td>'
        body.append(f'<tr>{line}<td class="number">{_seeds(cells)}</td></tr>')
    grid = Html(
        f'<div class="wide"><table class="paper"><thead><tr>{top}</tr>\n<tr>{below}</tr></thead>'
        f"\n<tbody>" + "\n".join(body) + "</tbody></table></div>"
    )
    return join(grid, paragraph(caption(table), "quiet"))


# amssymb has the tick, adjustbox makes a table that is wider than the page as wide as the page.
LATEX_PACKAGES = r"\usepackage{amssymb, adjustbox}"


def table_latex(table: FilledTable) -> str:
    """A floating table over the whole page; it needs `LATEX_PACKAGES`."""
    layout = table.layout
    texts, marks, targets = 2, len(layout.marks), len(layout.targets)
    spans = " & ".join(rf"\multicolumn{{2}}{{c}}{{{_tex(name)}}}" for name in layout.targets)
    heads = " & ".join(("Modality", "Model", *layout.marks))
    lines = [
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{_tex(f'{layout.title}. {caption(table)}')}}}",
        rf"\label{{tab:{layout.number.lower()}}}",
        r"\begin{adjustbox}{max width=\textwidth}",
        rf"\begin{{tabular}}{{{'l' * texts}{'c' * marks}{'rr' * targets}r}}",
        r"\hline",
        rf"{heads} & {spans} & Seeds \\",
        " & " * (texts + marks - 1) + " & ours & paper" * targets + r" & \\",
        r"\hline",
    ]
    for row, cells in zip(layout.rows, table.cells, strict=True):
        parts = [_tex(row.modality), _tex(row.model)]
        parts += _marks(row, r"$\checkmark$", r"$\times$")
        for cell in cells:
            parts += [_latex(cell.ours), _latex(cell.published)]
        lines.append(" & ".join([*parts, _seeds(cells)]) + r" \\")
    ends = (r"\hline", r"\end{tabular}", r"\end{adjustbox}", r"\end{table*}")
    return "\n".join([*lines, *ends, ""])


def table_csv(table: FilledTable) -> list[list[str]]:
    """Header and rows; our numbers unrounded, the published ones as printed."""
    layout = table.layout
    unit, scale = ("AUROC %", 100) if layout.metric == "auroc" else ("r", 1)
    header = ["modality", "model", "method", *(f"pre-trained {name}" for name in layout.marks)]
    for target in layout.targets:
        header += [f"{target} {part} [{unit}]" for part in ("ours mean", "ours sd")]
        header += [f"{target} seeds", f"{target} n"]
        header += [f"{target} {part} [{unit}]" for part in ("paper mean", "paper sd")]
    lines = [header]
    for row, cells in zip(layout.rows, table.cells, strict=True):
        line = [row.modality, row.model, row.method, *_marks(row, "yes", "no")]
        for cell in cells:
            value = cell.value
            numbers = [scale * value.mean, scale * value.sd] if value else []
            line += [repr(x) if math.isfinite(x) else "" for x in numbers] or ["", ""]
            line += [str(len(value.per_seed)), _range(cell.n)] if value else ["", ""]
            line += [cell.published.mean, cell.published.sd] if cell.published else ["", ""]
        lines.append(line)
    return lines


def caption(table: FilledTable) -> str:
    """Metric, unit, spread, marks and counts."""
    layout = table.layout
    what = "AUROC in per cent" if layout.metric == "auroc" else "Pearson's r, mean over phenotypes"
    text = (
        f"{what}: mean ± sample standard deviation over training seeds. Best in bold, second best "
        "underlined, for ours and for the paper. Paper: Turgut et al., arXiv 2308.05764v1, "
        f"Table {layout.number}, UK Biobank"
    )
    if layout.metric == "r":
        text += ". A cell is empty where a model does not predict all labels of the column"
    if table.counts:
        text += f". Test records of ours: {', '.join(table.counts)}"
    return f"{text}."


def text_of(number: Number | None) -> str:
    """'73.00±0.30'."""
    return "" if number is None else number.mean + (f"±{number.sd}" if number.sd else "")


def _printed(value: Value, metric: str) -> Number:
    scale, decimals = (100, 2) if metric == "auroc" else (1, 3)
    sd = "" if math.isnan(value.sd) else f"{scale * value.sd:.{decimals}f}"
    return Number(f"{scale * value.mean:.{decimals}f}", sd)


def _ranked(numbers: Sequence[Number | None], rows: Sequence[Row]) -> list[Number | None]:
    """Marks best and second best where there are several numbers; references are left out."""
    compared = [
        float(number.mean)
        for number, row in zip(numbers, rows, strict=True)
        if number is not None and not row.reference
    ]
    order = sorted(set(compared), reverse=True)
    if len(compared) < 2:
        return list(numbers)
    ranked = []
    for number, row in zip(numbers, rows, strict=True):
        if number is not None and not row.reference:
            place = order.index(float(number.mean)) + 1
            number = dataclasses.replace(number, rank=place if place <= SECOND else 0)
        ranked.append(number)
    return ranked


def _html(number: Number | None) -> Html:
    tag = {BEST: "b", SECOND: "u"}.get(number.rank if number else 0)
    text = escape(text_of(number))
    return Html(f"<{tag}>{text}</{tag}>") if tag else text


def _latex(number: Number | None) -> str:
    if number is None:
        return ""
    text = number.mean + (rf" \pm {number.sd}" if number.sd else "")
    if number.rank == BEST:
        return rf"$\mathbf{{{text}}}$"
    return rf"\underline{{${text}$}}" if number.rank == SECOND else f"${text}$"


def _marks(row: Row, yes: str, no: str) -> list[str]:
    return [yes if mark else no for mark in row.marks]


def _seeds(cells: Sequence[Cell]) -> str:
    return _range([len(cell.value.per_seed) for cell in cells if cell.value])


def _range(counts: Sequence[int]) -> str:
    """'300', or '290 to 300'."""
    ends = dict.fromkeys((min(counts), max(counts))) if counts else ()
    return " to ".join(f"{n:,}" for n in ends)


def _tex(text: str) -> str:
    """Text with the characters that LaTeX reads otherwise."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {char: f"\\{char}" for char in "&%$#_{}"} | {"±": r"$\pm$"}
    return "".join(special.get(char, char) for char in text)

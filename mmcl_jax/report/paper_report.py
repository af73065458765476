"""The tables and figures of the paper from whatever runs exist, ours beside the published numbers.

`write_paper_report` looks for run directories below the given folders, tells methods apart by
`name` in their configuration and shares of labels by `fraction` of the fine-tuning stage, and
writes one page that holds everything. Beside it lie the tables (CSV, LaTeX), the figures (PNG, SVG)
and the comparisons (CSV). Equal inputs give equal bytes.
"""

import math
import os
import pathlib
from collections.abc import Sequence

from mmcl_jax.html_page import Html, details, escape, heading, join, page, paragraph, table
from mmcl_jax.report import paper_comparisons, paper_figures, paper_tables
from mmcl_jax.report.files import Figures, write_csv, write_page
from mmcl_jax.report.inputs import data_source
from mmcl_jax.report.paper_layout import (
    DISEASE_NAMES,
    GROUPS,
    METHODS,
    TABLES,
    in_order,
    method_name,
)
from mmcl_jax.report.paper_results import GROUP_MEMBERS, Results, Value, mean_value
from mmcl_jax.report.paper_runs import FINE_TUNED, Key, find_runs
from mmcl_jax.report.run_report import RESEARCH
from mmcl_jax.report.run_results import NAMES

SYNTHETIC = (
    "Synthetic cohort. The subjects of {runs} come from a simulator. These results check that the "
    "method and the software work; they say nothing about patients, and are not to be compared "
    "with the paper's numbers, which are of UK Biobank."
)


def write_paper_report(
    folders: Sequence[str | os.PathLike],
    *,
    output: str | os.PathLike | None = None,
    resamples: int = 2000,
) -> pathlib.Path:
    """Writes the page and its files and returns the path of its index.html.

    Args:
        folders: run directories are searched for at and below them.
        output: folder of the page; without it `report` in the first folder.
        resamples: of the bootstrap between two methods.

    Raises:
        FileNotFoundError: a folder does not exist, or holds no run.
        ValueError: a file cannot be read, two models are of the same method, label, share of labels
            and seed, runs come from different cohorts, or too few resamples.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected at least 1")
    runs = find_runs(folders)
    default = pathlib.Path(folders[0]) / "report"
    if output is None and default.parent.resolve() in runs:
        raise ValueError(
            f"{folders[0]} is a run directory, which has a report of its own: give --output, or "
            "the folder above it"
        )
    results = Results(runs)
    folder = default if output is None else pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    figures = Figures(folder, svg=True)
    tables, names = _tables_section(results, folder)
    found = paper_comparisons.compare_all(results, resamples)
    calibrated, bins = paper_figures.calibration_section(results, figures)
    sections = [
        ("brief", "In brief", _brief_section(results)),
        ("tables", "Tables I to V", tables),
        ("figure4", "Figure 4: phenotypes", paper_figures.phenotype_section(results, figures)),
        ("figure5", "Figure 5: fewer labels", paper_figures.low_data_section(results, figures)),
        ("figure6", "Figure 6: similarity", paper_figures.similarity_section(results, figures)),
        ("comparisons", "Differences and p-values", paper_comparisons.section(found)),
        ("calibration", "Calibration", calibrated),
        ("all", "All results", _all_section(results)),
        ("runs", "Runs", _runs_section(results)),
    ]
    files = {"comparisons.csv": paper_comparisons.to_csv(found), "calibration.csv": bins}
    files["results.csv"] = _all_rows(results)
    for name, rows in files.items():
        if len(rows) > 1:
            write_csv(folder / name, rows)
            names.append(name)
    sections.append(("files", "Files", _files_section([*names, *figures.names])))
    title = "Tables and figures of the paper"
    write_page(folder / "index.html", page(title, _header(results, title), sections))
    return folder / "index.html"


def _header(results: Results, title: str) -> Html:
    made = [run.path.name for run in results.runs if "synthetic" in data_source(run).lower()]
    every = "all runs" if len(made) == len(results.runs) else f"the runs {', '.join(made)}"
    note = paragraph(SYNTHETIC.format(runs=every), "note") if made else ""
    text = (
        "Ours beside the published numbers of Turgut et al., Unlocking the Diagnostic Potential of "
        "ECG through Knowledge Transfer from Cardiac MRI (arXiv 2308.05764v1)."
    )
    return join(Html(f"<h1>{escape(title)}</h1>"), paragraph(text), paragraph(RESEARCH), note)


def _tables_section(results: Results, folder: pathlib.Path) -> tuple[Html, list[str]]:
    parts, names = [], []
    latex = [f"% {paper_tables.LATEX_PACKAGES}\n"]
    for layout in TABLES:
        filled = paper_tables.fill(layout, results)
        name = f"table_{layout.number}"
        write_csv(folder / f"{name}.csv", paper_tables.table_csv(filled))
        latex.append(paper_tables.table_latex(filled))
        names.append(f"{name}.csv")
        parts.append(heading(f"Table {layout.number}. {layout.title}"))
        if filled.is_empty:
            parts.append(paragraph("No run of ours is in this table yet."))
        parts.append(paper_tables.table_html(filled))
        if layout.number == "V":
            text = (
                "The rows of MMCL cannot be read with certainty in the copy of the paper at hand, "
                "so they are left empty; the supervised row is also in Table I."
            )
            parts.append(paragraph(text, "quiet"))
    (folder / "tables.tex").write_text("\n".join(latex), encoding="utf-8")
    return join(*parts), [*names, "tables.tex"]


def _brief_section(results: Results) -> Html:
    """Mean over the three diseases and over the phenotypes, by method and share of labels."""
    phenotypes = tuple(name for group in GROUPS for name in GROUP_MEMBERS[group])
    columns = [(DISEASE_NAMES, "auroc"), (phenotypes, "r")]
    lines = []
    for key in _keys(results):
        cells = []
        for labels, metric in columns:
            found = [scores for name in labels if (scores := results.scores(key, name))]
            value = mean_value(found, metric)
            seeds = len(value.per_seed) if value else ""
            cells += [_mean_sd(value), f"{len(found)}" if value else "", f"{seeds}"]
        if any(cells):
            share = f"{100 * key.fraction:g} %"
            lines.append([key.protocol, share, method_name(key.method), *cells])
    if not lines:
        return paragraph("No run predicts a disease or a phenotype of the paper on a test split.")
    header = (
        *("protocol", "labels", "method", "mean AUROC", "diseases", "seeds"),
        *("mean r", "phenotypes", "seeds"),
    )
    text = (
        "Test split. Means over the diseases and phenotypes that a method predicts, for each seed, "
        "then mean ± sample standard deviation over seeds. Labels: share of the training labels. "
        "Only fine-tuned models are in the tables and figures below."
    )
    return join(table(header, lines, numbers=range(3, 9)), paragraph(text, "quiet"))


def _all_section(results: Results) -> Html:
    header, *rows = _all_rows(results)
    if not rows:
        return paragraph("No run predicts a label of a test split.")
    text = (
        "Mean ± sample standard deviation over training seeds, test split. Other metrics and "
        "bootstrap intervals are in the report of each run."
    )
    lines = []
    for share, protocol, method, target, metric, mean, sd, seeds, n, _ in rows:
        value = f"{float(mean):.3f}" + (f" ± {float(sd):.3f}" if sd else "")
        named = [f"{100 * float(share):g} %", protocol, method_name(method), target]
        lines.append([*named, NAMES[metric], value, str(seeds), f"{n:,}"])
    names = ("labels", "protocol", "method", "target", "metric", "value", "seeds", "n")
    grid = table(names, lines, numbers=range(5, 8))
    return join(paragraph(text), details(f"{len(lines)} rows", grid))


def _all_rows(results: Results) -> list[list]:
    header = ["label share", "protocol", "method", "target", "metric", "mean", "sd", "seeds", "n"]
    rows = [[*header, "unit"]]
    for key in _keys(results):
        for label in results.labels(key):
            scores = results.scores(key, label)
            if scores is None:
                continue
            metrics = ("r", "mae") if scores.kind == "regression" else ("auroc", "ap")
            for metric in metrics:
                if value := results.value(key, label, metric):
                    sd = "" if math.isnan(value.sd) else repr(value.sd)
                    place = [f"{key.fraction:g}", key.protocol, key.method, label, metric]
                    counts = [len(value.per_seed), len(scores.truth)]
                    unit = scores.unit if metric == "mae" else ""
                    rows.append([*place, repr(value.mean), sd, *counts, unit])
    return rows


def _keys(results: Results) -> list[Key]:
    """Fine-tuned models first, by share of labels, then in the order of the paper's methods."""
    order = in_order(key.method for key in results.keys)

    def place(key: Key) -> tuple:
        return key.protocol != FINE_TUNED, key.protocol, -key.fraction, order.index(key.method)

    return sorted(results.keys, key=place)


def _runs_section(results: Results) -> Html:
    every = sorted([*results.runs, *results.unused], key=lambda run: run.path)
    above = os.path.commonpath([run.path.parent for run in every])
    rows = []
    for run in every:
        devices = ", ".join(sorted(set(map(str, run.environment.get("devices", [])))))
        method = run.config["name"]
        known = "" if method in METHODS else " (in no table of the paper)"
        what = f"{len(run.predictions)} fine-tuned models" if run.predictions else "pre-training"
        rows.append(
            [
                os.path.relpath(run.path, above),
                method + known,
                "not used by its method" if run in results.unused else what,
                data_source(run) or "not stated",
                str(run.environment.get("git_revision", ""))[:12],
                devices,
            ]
        )
    header = ("run", "method", "holds", "data", "revision", "devices")
    sources = {data_source(run) for run in results.runs}
    parts = [table(header, rows)]
    if len(sources) > 1:
        text = f"The runs name {len(sources)} sources of data; compare them with care."
        parts.append(paragraph(text, "note"))
    return join(*parts)


def _files_section(names: Sequence[str]) -> Html:
    links = "".join(f'<li><a href="{escape(name)}">{escape(name)}</a></li>' for name in names)
    note = "They lie beside this page. Figure 6 names single records: treat it as the cohort."
    return join(paragraph(note), Html(f"<ul>{links}</ul>"))


def _mean_sd(value: Value | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.3f}" + ("" if math.isnan(value.sd) else f" ± {value.sd:.3f}")

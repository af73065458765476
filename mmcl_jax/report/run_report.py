"""The report of one run: RUN/report/index.html.

The page holds all tables and figures and needs nothing else. Beside it lie the same numbers and
figures as files: metrics.csv, predictions_<target>.csv and the PNG of every figure. What a run
directory does not hold yet is left out of the report, with a sentence that says so. Equal inputs
give equal bytes.
"""

import csv
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from mmcl_jax.html_page import (
    Html,
    code,
    details,
    escape,
    join,
    page,
    paragraph,
    table,
    terms,
)
from mmcl_jax.report import run_figures
from mmcl_jax.report.confusion import confusion_section
from mmcl_jax.report.files import Figures, file_name, write_csv, write_page
from mmcl_jax.report.inputs import Predictions, Run, cohort_preview, data_source, read_run
from mmcl_jax.report.run_results import results_section, retrieval_section, summary_section

SYNTHETIC = (
    "Synthetic cohort. The subjects of this run come from a simulator. The results check that the "
    "method and the software work; they say nothing about patients."
)
RESEARCH = "Research use only, not for clinical use."


def write_report(run_dir: str | os.PathLike) -> pathlib.Path:
    """Writes RUN/report and returns the path of its index.html.

    Raises:
        FileNotFoundError: the folder holds no `config.json`.
        ValueError: a file of the run cannot be read; the message names the file and the field.
    """
    run = read_run(pathlib.Path(run_dir))
    output = run.path / "report"
    output.mkdir(exist_ok=True)
    figures = Figures(output)
    sections = [
        ("summary", "Results in brief", summary_section(run)),
        ("run", "What was run", _run_section(run)),
        ("stages", "Stages", _stages_section(run)),
        ("curves", "Training curves", run_figures.training_section(run, figures)),
        ("results", "Results", results_section(run)),
        ("roc", "ROC curves", run_figures.roc_section(run, figures)),
        ("calibration", "Calibration", run_figures.calibration_section(run, figures)),
        ("scatter", "Predicted against measured", run_figures.scatter_section(run, figures)),
        ("retrieval", "Retrieval", retrieval_section(run)),
        ("maps", "Similarity maps", run_figures.similarity_section(run, figures)),
    ]
    if preview := cohort_preview(run):
        content = run_figures.cohort_section(preview, figures)
        sections.insert(2, ("cohort", "Cohort", content))
    if confusion := confusion_section(run):
        place = [name for name, _, _ in sections].index("results") + 1
        sections.insert(place, ("confusion", "Confusion of classes", confusion))
    names = [*_write_metrics(run, output), *_write_predictions(run, output), *figures.names]
    sections.append(("files", "Files", _files_section(names)))
    title = f"Report: {run.config.get('name') or run.path.resolve().name}"
    text = page(title, _header(run, title), sections)
    write_page(output / "index.html", text)
    return output / "index.html"


def run(experiment, **settings) -> dict[str, str]:
    """Writes the report as the last stage of an experiment; it has no settings.

    Raises:
        ValueError: as `write_report`, or settings were given.
    """
    if settings:
        raise ValueError(f"the report has no settings, found {', '.join(sorted(settings))}")
    page_file = write_report(experiment.run.path)
    return {"page": str(page_file.relative_to(experiment.run.path))}


def _header(run: Run, title: str) -> Html:
    source = data_source(run)
    notes = []
    if "synthetic" in source.lower():
        notes.append(paragraph(SYNTHETIC, "note"))
    elif not source:
        notes.append(paragraph("The run does not state where its data come from.", "note"))
    return join(Html(f"<h1>{escape(title)}</h1>"), paragraph(RESEARCH), *notes)


def _run_section(run: Run) -> Html:
    pairs = [
        ("configuration", run.config.get("name") or "not named"),
        ("data source", data_source(run) or "not stated"),
        *_flat(run.environment),
    ]
    parts = [terms(pairs)]
    if not run.environment:
        parts.append(
            paragraph("environment.json is absent: revision, versions and device are unknown.")
        )
    settings = json.dumps(run.config, indent=2, sort_keys=True, ensure_ascii=False)
    return join(*parts, details("Whole configuration (config.json)", code(settings)))


def _stages_section(run: Run) -> Html:
    if not run.log:
        return paragraph("No training log: metrics.jsonl is absent or empty.")
    rows = []
    for stage, records in run.log.items():
        epochs = [record["epoch"] for record in records if "epoch" in record]
        times = [record["time"] for record in records if "time" in record]
        rows.append(
            (
                stage,
                f"{records[-1]['step']:,}",
                f"{max(epochs):g}" if epochs else "",
                run_figures.best_metric(records),
                _duration(max(times) - min(times)) if times else "",
            )
        )
    note = "Time runs from the first to the last log line of a stage, interruptions included."
    header = ("stage", "steps", "epochs", "best validation metric", "time")
    return join(table(header, rows), paragraph(note, "quiet"))


def _files_section(names: list[str]) -> Html:
    links = "".join(f'<li><a href="{escape(name)}">{escape(name)}</a></li>' for name in names)
    note = (
        "They lie beside this page. The predictions, the similarity maps and the picture of the "
        "cohort name single records: treat them as the cohort itself."
    )
    return join(paragraph(note), Html(f"<ul>{links}</ul>")) if names else paragraph("None.")


def _write_metrics(run: Run, output: pathlib.Path) -> list[str]:
    if not run.metrics_text:
        return []
    rows = [row for row in csv.reader(run.metrics_text.splitlines()) if row]
    write_csv(output / "metrics.csv", rows)
    return ["metrics.csv"]


def _write_predictions(run: Run, output: pathlib.Path) -> list[str]:
    """One file per target, with the seeds below each other."""
    targets: dict[str, list[Predictions]] = {}
    for predictions in run.predictions:
        name = file_name(predictions.target)
        targets.setdefault(name, []).append(predictions)
    written = []
    for target, members in targets.items():
        columns = []
        for member in members:
            for name, kind, unit in zip(member.names, member.kinds, member.units, strict=True):
                units = ("0 or 1", "probability") if kind != "regression" else (unit or "1",) * 2
                columns.append((name, *units))
        columns = list(dict.fromkeys(columns))
        header = ["record", "subject", "split", "stage", "seed"]
        for name, measured, predicted in columns:
            header += [f"{name} measured [{measured}]", f"{name} predicted [{predicted}]"]
        rows = [header]
        for member in members:
            rows += _prediction_rows(member, [name for name, _, _ in columns])
        name = f"predictions_{target}.csv"
        write_csv(output / name, rows)
        written.append(name)
    return written


def _prediction_rows(member: Predictions, names: list[str]) -> list[list[str]]:
    position = {name: column for column, name in enumerate(member.names)}
    rows = []
    for i, record in enumerate(member.record):
        row = [record, member.subject[i], member.split[i], member.stage, member.seed]
        for name in names:
            if name in position:
                pair = member.label[i, position[name]], member.prediction[i, position[name]]
                row += ["" if np.isnan(value) else f"{value:.6g}" for value in pair]
            else:
                row += ["", ""]
        rows.append(row)
    return rows


def _flat(tree: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for name, value in tree.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{label}: ")
        elif name == "command":
            pairs.append((label, " ".join(map(str, value))))
        elif isinstance(value, list):
            counts = {item: value.count(item) for item in dict.fromkeys(map(str, value))}
            named = (f"{n} x {item}" if n > 1 else item for item, n in counts.items())
            pairs.append((label, ", ".join(named)))
        else:
            pairs.append((label, str(value)))
    return pairs


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"

"""The model card as markdown."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mmcl_jax.export.model_card import SYNTHETIC


def to_markdown(card: dict[str, Any]) -> str:
    """The card for people. What comes from data and configuration is escaped."""
    data, model, licence = card["data"], card["model"], card["licence"]
    parts = [
        f"# Model card: {escape(card['name'])}",
        "**Research use only, not for clinical use.**",
        *([f"**{SYNTHETIC}**"] if data["synthetic"] else []),
        "## Model",
        f"Task: {escape(model['task'])}. Stages: {escape(', '.join(model['stages']))}.",
        f"ECG encoder: {escape(_pairs(model['encoder']))}.",
        *_labels_table(model["labels"]),
        "## Intended use",
        _list(card["intended_use"]),
        "Not for:",
        _list(card["not_for"]),
        "## Data",
        *_data_parts(data),
        "## Training",
        *_training_parts(card["training"]),
        "## Metrics",
        *_metrics_parts(card["metrics"]),
        "## Limits",
        _list(card["limits"]),
        "## Preprocessing",
        _table(
            ("setting", "value"),
            [(name, json.dumps(value)) for name, value in card["preprocessing"]["ecg"].items()],
        ),
        f"Windows averaged per recording: {card['preprocessing']['windows']}. Hash of the settings "
        f"of the training cohort: {escape(card['preprocessing']['hash'])}.",
        "## Licence",
        _list([f"Software: {licence['software']}", f"Weights: {licence['weights']}"]),
        "## Versions",
        f"Source revision of the training: {escape(card['versions']['source_revision'])}.",
        _versions_table(card["versions"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: Any) -> str:
    """Text that markdown shows as it is, in one line: no markup, no HTML, no table cell ends."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]#|~!])", r"\\\1", line).replace("://", ":\\//")
    # What makes a list or a heading at the start of a line.
    return re.sub(r"^([-+=]+|\d+\.)(?=\s|$)", lambda m: f"{m[0][:-1]}\\{m[0][-1]}", line)


def _data_parts(data: dict[str, Any]) -> list[str]:
    kind = "simulated" if data["synthetic"] else "recorded"
    if data["missing"]:
        return [f"Not described: {escape(data['missing'])}."]
    header = ("split", "records", "subjects", "with ECG", "with CMR")
    splits = data["splits"]
    rows = [
        (split, s["records"], s["subjects"], s["with_ecg"], s["with_cmr"])
        for split, s in splits.items()
    ]
    labels = next(iter(splits.values()))["labels"] if splits else {}
    found = [
        (name, *(s["labels"][name]["words"] for s in splits.values()),
         sum(s["labels"][name]["missing"] for s in splits.values()))
        for name in labels
    ]  # fmt: skip
    parts = [f"Source: {escape(data['source'])} ({kind}).", _table(header, rows)]
    if found:
        note = "share of positives or of each class; mean, standard deviation of a number"
        parts += [f"Labels of records with an ECG ({note}):"]
        parts += [_table(("label", *splits, "missing"), found)]
    return parts


def _training_parts(training: Sequence[dict[str, Any]]) -> list[str]:
    header = (
        "stage", "objective", "started from", "records", "epochs", "batch", "steps", "optimiser",
    )  # fmt: skip
    rows = [
        (
            stage["name"],
            stage["objective"],
            _pairs(stage["started_from"]) or "random values",
            stage.get("records", ""),
            stage["epochs"],
            stage["batch_size"],
            stage.get("steps", ""),
            _pairs(stage["optimizer"]),
        )
        for stage in training
    ]
    return [_table(header, rows)]


def _metrics_parts(metrics: dict[str, Any]) -> list[str]:
    if metrics["missing"]:
        return [escape(metrics["missing"])]
    rows = [
        (
            row["target"],
            row["split"],
            row["metric"],
            "undefined" if row["value"] is None else f"{row['value']:.3f}",
            "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}",
            row["n"],
            row["seed"],
        )
        for row in metrics["rows"]
    ]
    header = ("target", "split", "metric", "value", "95 % interval", "n", "seed")
    return ["Intervals: bootstrap over subjects.", _table(header, rows)]


def _labels_table(labels: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (x["name"], x["kind"], x["unit"] or ", ".join(x["classes"]), x["description"])
        for x in labels
    ]
    return [_table(("label", "kind", "unit or classes", "meaning"), rows)] if rows else []


def _versions_table(versions: dict[str, Any]) -> str:
    names = sorted({*versions["training"], *versions["card"]})
    rows = [(n, versions["training"].get(n, ""), versions["card"].get(n, "")) for n in names]
    return _table(("package", "training", "this card"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *([escape(cell) for cell in row] for row in rows)]
    # The names of splits are in a header too.
    lines[0] = [escape(cell) for cell in header]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {escape(item)}" for item in items)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())

"""The command `python -m mmcl_jax.prepare inspect PATH`: what a cohort or a recording holds."""

import argparse
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl_jax.data.cohort_format import flatten
from mmcl_jax.data.preparing.inspection import describe
from mmcl_jax.data.preparing.loading import printable
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.subject import RefusedRecord


def main(arguments: Sequence[str]) -> int:
    """Prints what is at a path. Returns the exit code: 1 where it cannot be read."""
    parsed = _parser().parse_args(arguments)
    try:
        found = describe(parsed.path)
    except _UNREADABLE as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if parsed.path not in text:
            text = f"{parsed.path}: {text}"
        print(f"prepare inspect: {printable(text)}", file=sys.stderr)
        return 1
    if parsed.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(printable(line) for line in text_lines(found)))
    return 0


# What readers raise for files that are damaged or of another kind.
_UNREADABLE = (RefusedRecord, ValueError, OSError, ImportError, EOFError, KeyError, MemoryError)
_UNREADABLE += (zipfile.BadZipFile,)


def text_lines(found: Mapping[str, Any]) -> list[str]:
    """A description of `mmcl_jax.data.preparing.inspection.describe` for people."""
    lines = {"cohort": _cohort, "ecg": _ecg, "arrays": _arrays, "cmr": _cmr}[found["kind"]](found)
    if "usable" in found:
        lines.append("usable: yes" if found["usable"] else f"usable: no, {found['reason']}")
    lines += [f"remark: {flag}" for flag in found.get("flags", ())]
    return [f"{found['path']}: {lines[0]}", *lines[1:]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmcl_jax.prepare inspect",
        description="Tell what a cohort or a single file of recordings holds.",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        help="folder of a cohort; an ECG in WFDB (.hea) or CardioSoft (.xml); arrays in .npy, "
        ".npz, .hdf5 or .pt; a CMR in a zip of DICOM files or in NIfTI",
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    return parser


def _cohort(found: Mapping[str, Any]) -> list[str]:
    lines = [f"cohort from source {found['source']!r}"]
    lines += [f"{name}: {json.dumps(value)}" for name, value in found["parameters"].items()]
    lines += ["settings:"]
    lines += [
        f"  {name}: {json.dumps(value)}" for name, value in flatten(found["settings"]).items()
    ]
    lines += [f"  sha256: {found['settings_hash']}"]
    splits = found["splits"]
    rows = [
        (name, *(f"{number:,}" for number in counts.values())) for name, counts in splits.items()
    ]
    lines += _columns(("split", "records", "subjects", "with ECG", "with CMR"), rows)
    if found["leads"]:
        names = ("mean", "sd", "min", "max", "peak_to_peak")
        lines.append(f"leads in mV, over {found['leads']['records']:,} ECGs:")
        rows = [(lead, *(_number(found["leads"][lead][n]) for n in names)) for lead in LEADS]
        lines += _columns(("lead", "mean", "sd", "min", "max", "peak to peak"), rows)
    if not found["labels"]:
        return [*lines, "no labels"]
    lines.append("labels (known / of them positive, or mean, sd; missing):")
    rows = []
    for name, label in found["labels"].items():
        parts = label["splits"].values()
        missing = sum(part["missing"] for part in parts)
        total = missing + sum(part["known"] for part in parts)
        share = f"{100 * missing / total:.1f} %" if total else "-"
        rows.append((name, *(_summary(part, label["unit"]) for part in parts), share))
    return [*lines, *_columns(("label", *splits, "missing"), rows)]


def _summary(part: Mapping[str, Any], unit: str) -> str:
    text = f"{part['known']:,}"
    if "positives" in part:
        return f"{text} / {part['positives']:,} ({100 * part['prevalence']:.1f} %)"
    if "counts" in part:
        return f"{text} / " + ", ".join(
            f"{name} {count:,}" for name, count in part["counts"].items()
        )
    if "mean" in part:
        return f"{text} / {part['mean']:.4g}, {part['sd']:.3g} {unit}".rstrip()
    return text


def _ecg(found: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            lead["name"] or "(no name)",
            lead["lead"] or "no lead",
            lead["unit"],
            *_statistics(lead),
            "" if lead["statistics_in"] == "mV" else f"in {lead['statistics_in']}",
        )
        for lead in found["leads"]
    ]
    header = ("name", "understood as", "unit", "mean", "sd", "min", "max", "missing", "")
    return [
        f"ECG, {len(rows)} signals, {found['rate']:g} Hz, {found['seconds']:g} s "
        f"({found['samples']:,} samples); mean to max in mV",
        *_columns(header, rows),
    ]


def _arrays(found: Mapping[str, Any]) -> list[str]:
    count = len(found["arrays"])
    lines = [f"{count} array{'s' if count != 1 else ''}; rate, unit and lead names are not in it"]
    for name, array in found["arrays"].items():
        looked = f", over the first {array['looked_at']:,}" if "looked_at" in array else ""
        lines.append(f"{name or 'array'}: {array['dtype']} {array['shape']}{looked}")
        if "mean" in array:
            header = ("", "mean", "sd", "min", "max", "missing")
            rows = [("all", *_statistics(array))]
            axis = array.get("lead_axis")
            rows += [
                (f"[{', '.join([':'] * axis + [str(row)])}]", *_statistics(lead))
                for row, lead in enumerate(array.get("leads", ()))
            ]
            lines += _columns(header, rows)
    return lines


def _cmr(found: Mapping[str, Any]) -> list[str]:
    distance = found["slice_distance"]
    apart = f", {distance:.4g} mm apart" if distance is not None else ""
    lines = [
        f"CMR, {found['slices']} slices{apart}, {found['frames']} frames, "
        f"{found['rows']} x {found['columns']} pixels of {found['pixel_size']:g} mm",
        *_columns(("", "mean", "sd", "min", "max", "missing"), [("pixels", *_statistics(found))]),
    ]
    if "values" in found:
        lines.append(f"values: {', '.join(f'{value:g}' for value in found['values'])}")
    return lines


def _statistics(found: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (_number(found[name]) for name in ("mean", "sd", "min", "max"))
    return (*numbers, f"{100 * found['missing']:.2f} %")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right, indented by two."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for first, *others in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(["", first.ljust(widths[0]), *cells]).rstrip())
    return lines

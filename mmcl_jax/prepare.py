"""Prepares a cohort: reads a data set in its native layout, preprocesses it, writes one folder.

    python -m mmcl_jax.prepare SOURCE --input ... --output ...

Every source goes through the same preprocessing and the same report, and the folder gets a
preview.png that shows a few of its records. The exit code is 0 when the
cohort is written, and 1 when the input or the output cannot be used, or with --strict when a
record was refused.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from mmcl_jax.data import cohort


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code."""
    options = vars(_parser().parse_args(arguments))
    make_source, source_name = options.pop("make_source"), options.pop("source")
    output, overwrite = options.pop("output"), options.pop("overwrite")
    workers, strict = options.pop("workers"), options.pop("strict")
    try:
        source = make_source(**options)
        report = cohort.write(source, output, workers=workers, overwrite=overwrite)
    except (ValueError, OSError, ImportError) as error:
        print(f"prepare {source_name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"prepare {source_name}: interrupted, nothing written", file=sys.stderr)
        return 130
    print(report, end="", flush=True)
    # Only here: worker processes import this module too, and draw nothing.
    from mmcl_jax.cohort_figures import write_preview

    print(f"preview: {write_preview(report.path)}")
    if strict and report.refused:
        print(
            f"prepare {source_name}: --strict: {len(report.refused)} records were refused, "
            f"see {report.path / 'refused.csv'}; the cohort is complete without them",
            file=sys.stderr,
        )
        return 1
    return 0


# Each source is imported by the command that asks for it: not everyone has pydicom.


def _synthetic(**options: Any):
    from mmcl_jax.data.synthetic import Synthetic

    return Synthetic(**options)


def _ptbxl(**options: Any):
    from mmcl_jax.data.ptbxl import PtbXl

    return PtbXl(**options)


def _dicom(**options: Any):
    from mmcl_jax.data.dicom import DicomZips

    return DicomZips(**options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmcl_jax.prepare",
        description="Prepare a cohort: ECGs, CMR frames and labels in one form, in one folder.",
        epilog="python -m mmcl_jax.prepare SOURCE --help shows the options of a source.",
    )
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)

    synthetic = _add_source(
        sources,
        "synthetic",
        _synthetic,
        "simulated subjects with ECG, CMR frames, diseases, phenotypes and demographics",
        "--subjects 2000 --output cohorts/synthetic",
    )
    synthetic.add_argument("--subjects", type=int, default=2000, help="default: %(default)s")
    synthetic.add_argument(
        "--seed", type=int, default=0, help="another seed, another cohort; default: %(default)s"
    )
    synthetic.add_argument(
        "--prevalence",
        choices=("paper", "demo"),
        default="paper",
        help="how common the diseases are: as in the paper, or common enough for a few hundred "
        "subjects; default: %(default)s",
    )
    synthetic.add_argument(
        "--imaged",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the subjects who have CMR frames; default: %(default)s",
    )
    synthetic.add_argument(
        "--phenotyped",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of those with frames whose phenotypes are known; default: %(default)s",
    )

    ptbxl = _add_source(
        sources,
        "ptbxl",
        _ptbxl,
        "PTB-XL: 12-lead ECGs with diagnostic superclasses, age and sex",
        "--input ptb-xl-1.0.3 --output cohorts/ptbxl",
    )
    ptbxl.add_argument(
        "--input",
        required=True,
        metavar="FOLDER",
        help="folder with ptbxl_database.csv, scp_statements.csv and records500/",
    )

    dicom = _add_source(
        sources,
        "dicom",
        _dicom,
        "short-axis cine CMR in DICOM zips, alone or paired with WFDB ECGs",
        "--input cmr/ --pairs pairs.csv --ecg ecg/ --output cohorts/hospital",
    )
    dicom.add_argument(
        "--input", required=True, metavar="FOLDER", help="folder with one .zip per examination"
    )
    dicom.add_argument(
        "--pairs",
        metavar="CSV",
        help="columns subject, cmr (path of the zip) and ecg (path of the WFDB header), one of the "
        "two empty where there is none; optional columns: split, and labels by name. Without it "
        "every zip is a subject without ECG",
    )
    dicom.add_argument(
        "--ecg",
        dest="ecg_input",
        metavar="FOLDER",
        help="folder that the ECG paths are relative to; default: the input folder",
    )
    dicom.add_argument(
        "--seed", type=int, default=0, help="of the splits, where the CSV names none; default: 0"
    )
    return parser


def _add_source(sources, name: str, make_source, summary: str, example: str):
    parser = sources.add_parser(
        name,
        help=summary,
        description=f"Prepare a cohort from {summary}.",
        epilog=f"example: python -m mmcl_jax.prepare {name} {example}",
    )
    parser.set_defaults(make_source=make_source)
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="the cohort; must not exist yet"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the cohort of this name once done"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read and preprocess; 0: none but the main one; "
        "default: one per processor",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with code 1 when a record was refused; the cohort is written all the same",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Prepares a cohort: reads a data set in its native layout, preprocesses it, writes one folder.

    python -m mmcl_jax.prepare SOURCE --input ... --output ...
    python -m mmcl_jax.prepare inspect PATH

Every source goes through the same preprocessing and the same report. The folder gets a
preview.png that shows a few of its records and a prepare_report.html with everything that is to be
known about them. `inspect` tells what a cohort or a single recording holds.

With --hash-ids the cohort holds no name of the source: see data/preparing/hashed_ids.py.

A preparation that was killed goes on where it stopped when it is started again. The exit code is 0
when the cohort is written, and 1 when the input or the output cannot be used, or with --strict
when a record was refused.
"""

import argparse
import contextlib
import functools
import importlib
import shlex
import sys
import types
from collections.abc import Callable, Sequence

from mmcl_jax.data import cohort
from mmcl_jax.data.preparing import hashed_ids
from mmcl_jax.data.preparing.loading import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with contextlib.suppress(AttributeError):
        # A file name that is no UTF-8 is printed with its bytes written out.
        sys.stdout.reconfigure(errors="backslashreplace")
    if arguments[:1] == ["inspect"]:
        from mmcl_jax.data.preparing import inspect_command

        return inspect_command.main(arguments[1:])
    name = arguments[0] if arguments and arguments[0] in SOURCES else None
    try:
        options = vars(_parser(name).parse_args(arguments))
        del options["source"]
        output, strict = options.pop("output"), options.pop("strict")
        common = {key: options.pop(key) for key in ("workers", "overwrite")}
        distribute = _distribute(options.pop("runner"), options.pop("runner_options"))
        key = options.pop("hash_ids")
        ids = hashed_ids.open_key(key, output) if key else None
        with ids.errors_beside_the_key() if ids else contextlib.nullcontext():
            source = _module(name).make(**options)
            report = cohort.write(source, output, distribute=distribute, ids=ids, **common)
    except (ValueError, OSError, ImportError) as error:
        print(f"prepare {name}: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"prepare {name}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(report, end="", flush=True)
    lists = ids.lists.folder if ids else report.path
    if ids:
        print(f"names, files and reasons, which stay with the key: {lists}")
    # Only here: worker processes import this module too, and draw nothing.
    from mmcl_jax.data.preparing.cohort_figures import write_preview
    from mmcl_jax.data.preparing.preparation_page import write_page

    try:
        print(f"preview: {write_preview(report.path)}")
        print(f"report: {write_page(report.path)}")
    except OSError as error:  # a full disk
        print(f"prepare {name}: the cohort is complete; its pictures: {error}", file=sys.stderr)
        return 1
    if strict and report.refused:
        print(
            f"prepare {name}: --strict: {len(report.refused)} records were refused, "
            f"see {lists / 'refused.csv'}; the cohort is complete without them",
            file=sys.stderr,
        )
        return 1
    return 0


# One line per file of `mmcl_jax.data.sources`; the files are imported when they are asked for,
# because not everyone has what all of them need.
SOURCES = {
    "synthetic": "simulated subjects with ECG, CMR frames, diseases, phenotypes and demographics",
    "ptbxl": "PTB-XL: 12-lead ECGs with diagnostic superclasses, age and sex",
    "wfdb": "any folder of WFDB records of 12-lead ECGs, with a table of labels or without",
    "cinc": "the PhysioNet/CinC Challenges 2020 and 2021: SNOMED CT diagnoses, age and sex",
    "mimic-iv-ecg": "MIMIC-IV-ECG: 800,000 ECGs, with a table of labels or without",
    "code15": "CODE-15%: 345,779 ECGs in HDF5 files with six diagnoses, age and sex",
    "table": "arrays (.npy, .npz, HDF5, .pt) or files of one's own, with a CSV of labels",
    "pt": ".pt tensors of ECGs, images and labels as the published code reads them",
    "ukb": "UK Biobank: resting ECGs, short-axis cine CMR, diseases, phenotypes, demographics",
    "dicom": "short-axis cine CMR in DICOM zips, alone or paired with WFDB ECGs",
    "nifti": "short-axis CMR in NIfTI files with or without label maps (ACDC, M&Ms, own)",
}


def _parser(name: str | None) -> argparse.ArgumentParser:
    """The parser of all sources, with the options of the one called `name`."""
    parser = argparse.ArgumentParser(
        prog="python -m mmcl_jax.prepare",
        description="Prepare a cohort: ECGs, CMR frames and labels in one form, in one folder.",
        epilog="python -m mmcl_jax.prepare SOURCE --help shows the options of a source; "
        "python -m mmcl_jax.prepare inspect PATH shows what a cohort or a recording holds.",
    )
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for source, summary in SOURCES.items():
        module = _module(source) if source == name else None
        options = sources.add_parser(
            source,
            help=summary.replace("%", "%%"),
            description=f"Prepare a cohort from {summary}.",
            epilog=module and f"example: python -m mmcl_jax.prepare {source} {module.EXAMPLE}",
        )
        if module:
            module.add_arguments(options)
            _add_common_arguments(options)
    return parser


def _module(name: str) -> types.ModuleType:
    return importlib.import_module(f"mmcl_jax.data.sources.{name.replace('-', '_')}")


def _distribute(runner: str | None, options: str) -> Callable | None:
    """What hands the work to Apache Beam; None without a runner."""
    if runner is None:
        return None
    from mmcl_jax.data.preparing import beam

    return functools.partial(beam.write_blocks, runner=runner, options=shlex.split(options))


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--hash-ids",
        metavar="FILE",
        help="for a cohort to be shared: records and people get names that only the holder of the "
        "key in FILE can trace back, and no name, file or reason of the source is in the folder. A "
        "FILE that does not exist is made; what names people is put beside it, in FILE.names",
    )
    parser.add_argument(
        "--runner",
        metavar="NAME",
        help="read and preprocess with Apache Beam, such as DirectRunner, DataflowRunner, "
        "FlinkRunner or SparkRunner, in place of the processes of this machine",
    )
    parser.add_argument(
        "--runner-options",
        default="",
        metavar="TEXT",
        help="options of the runner, such as '--project=p --region=r'",
    )


if __name__ == "__main__":
    sys.exit(main())

"""Prepares a cohort: reads a data set in its native layout, preprocesses it, writes one folder.

    python -m mmcl_jax.prepare SOURCE --input ... --output ...

Every source goes through the same preprocessing and the same report, and the folder gets a
preview.png that shows a few of its records. The exit code is 0 when the
cohort is written, and 1 when the input or the output cannot be used, or with --strict when a
record was refused.
"""

import argparse
import importlib
import sys
import types
from collections.abc import Sequence

from mmcl_jax.data import cohort


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments and arguments[0] in SOURCES else None
    try:
        options = vars(_parser(name).parse_args(arguments))
        del options["source"]
        output, overwrite = options.pop("output"), options.pop("overwrite")
        workers, strict = options.pop("workers"), options.pop("strict")
        source = _module(name).make(**options)
        report = cohort.write(source, output, workers=workers, overwrite=overwrite)
    except (ValueError, OSError, ImportError) as error:
        print(f"prepare {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"prepare {name}: interrupted, nothing written", file=sys.stderr)
        return 130
    print(report, end="", flush=True)
    # Only here: worker processes import this module too, and draw nothing.
    from mmcl_jax.cohort_figures import write_preview

    print(f"preview: {write_preview(report.path)}")
    if strict and report.refused:
        print(
            f"prepare {name}: --strict: {len(report.refused)} records were refused, "
            f"see {report.path / 'refused.csv'}; the cohort is complete without them",
            file=sys.stderr,
        )
        return 1
    return 0


# One line per file of `mmcl_jax.data.sources`; the files are imported when they are asked for,
# because not everyone has what all of them need.
SOURCES = {
    "synthetic": "simulated subjects with ECG, CMR frames, diseases, phenotypes and demographics",
    "ptbxl": "PTB-XL: 12-lead ECGs with diagnostic superclasses, age and sex",
    "dicom": "short-axis cine CMR in DICOM zips, alone or paired with WFDB ECGs",
}


def _parser(name: str | None) -> argparse.ArgumentParser:
    """The parser of all sources, with the options of the one called `name`."""
    parser = argparse.ArgumentParser(
        prog="python -m mmcl_jax.prepare",
        description="Prepare a cohort: ECGs, CMR frames and labels in one form, in one folder.",
        epilog="python -m mmcl_jax.prepare SOURCE --help shows the options of a source.",
    )
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for source, summary in SOURCES.items():
        module = _module(source) if source == name else None
        options = sources.add_parser(
            source,
            help=summary,
            description=f"Prepare a cohort from {summary}.",
            epilog=module and f"example: python -m mmcl_jax.prepare {source} {module.EXAMPLE}",
        )
        if module:
            module.add_arguments(options)
            _add_common_arguments(options)
    return parser


def _module(name: str) -> types.ModuleType:
    return importlib.import_module(f"mmcl_jax.data.sources.{name.replace('-', '_')}")


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


if __name__ == "__main__":
    sys.exit(main())

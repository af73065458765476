"""The command line of `embed` and `predict`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from absl import logging

from mmcl_jax.data.preparing.loading import printable
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.subject import SPLITS
from mmcl_jax.data.tasks.ecg_task import add_length_argument
from mmcl_jax.inference import BATCH_SIZE, Program, TrainedRun
from mmcl_jax.inference import run as inference_run


def main(
    verb: str,
    description: str,
    program_of: Callable[[TrainedRun], Program],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs the command line of a verb. Returns its exit code."""
    options = vars(_parser(verb, description).parse_args(arguments))
    strict = options.pop("strict")
    # Orbax logs every file that it reads.
    logging.set_verbosity(logging.ERROR)
    try:
        found = inference_run.run(verb, program_of, **options)
    except (ValueError, OSError, ImportError) as error:
        print(f"{verb}: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{verb}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    used = found.records - found.refused
    print(f"{options['output']}: {used:,} records used, {found.refused:,} refused")
    if not used:
        print(f"{verb}: none of the records can be used, see column refused", file=sys.stderr)
        return 1
    if strict and found.refused:
        print(f"{verb}: --strict: {found.refused:,} records were refused", file=sys.stderr)
        return 1
    return 0


def add_declarations(parser: argparse.ArgumentParser) -> None:
    """The options of `EcgFiles`: what files do not say themselves."""
    arrays = parser.add_argument_group("ECGs in arrays, which do not say it themselves")
    arrays.add_argument("--rate", type=float, default=0.0, metavar="HZ", help="samples per second")
    arrays.add_argument("--unit", default="", help="mV, uV, nV or V")
    arrays.add_argument(
        "--leads",
        default="",
        metavar="I,II,...",
        help=f"leads in the order of the array; default: {','.join(LEADS)}",
    )
    arrays.add_argument(
        "--array", default="", metavar="NAME", help="of the array where a file holds several"
    )
    arrays.add_argument(
        "--preprocessed",
        action="store_true",
        help="they are clipped, freed of their baseline and normalised already; in place of "
        "--rate and --unit",
    )
    files = parser.add_argument_group("ECGs in files")
    files.add_argument(
        "--subject-pattern",
        metavar="REGEX",
        help="finds the subject in the name of a record, its first group where it has one; "
        "default: every record is a person of its own",
    )
    add_length_argument(files)


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m mmcl_jax.{verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run",
        required=True,
        metavar="DIR",
        help="run directory, the --workdir of mmcl_jax.main; to embed also a folder that "
        "mmcl_jax.port wrote",
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="cohort; ECG in WFDB (.hea), CardioSoft (.xml), or arrays [12, samples] or "
        "[N, 12, samples] in .npy, .npz, .h5 or .pt; or a folder with such files, at any depth",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="ends in .parquet, .csv or .npz; FILE.json says what the columns are",
    )
    parser.add_argument(
        "--stage", default="", metavar="NAME", help="of the run, such as mmcl or finetune/CAD"
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        choices=SPLITS,
        help="of a cohort; may be given several times; default: all",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help=f"records at a time, over all devices; default: {BATCH_SIZE}",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read and preprocess files; 0: none but the main one; default: one "
        "per processor, and none for a few files",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output once done")
    parser.add_argument(
        "--strict", action="store_true", help="exit with code 1 when a record was refused"
    )
    add_declarations(parser)
    return parser

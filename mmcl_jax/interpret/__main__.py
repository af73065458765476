"""`python -m mmcl_jax.interpret RUN`, and for one ECG with `--input`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from absl import logging

from mmcl_jax import interpret
from mmcl_jax.command import errors_in_one_line, repeat_verb
from mmcl_jax.data.preparing.loading import printable
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.subject import RefusedRecord
from mmcl_jax.experiment import Experiment
from mmcl_jax.inference import Program, load
from mmcl_jax.inference import input as inference_input
from mmcl_jax.inference.command import add_declarations
from mmcl_jax.inference.input import Row, Rows
from mmcl_jax.inference.run import open_rows
from mmcl_jax.interpret import ecg as interpret_ecg
from mmcl_jax.interpret import figures as interpret_figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code."""
    options = _parser().parse_args(arguments)
    if not (options.input or options.record):
        otherwise = "; maps of one ECG are made with --input or --record, and --output"
        with errors_in_one_line():
            repeat_verb("interpret", options.run, otherwise)
        return 0
    # Orbax logs every file that it reads.
    logging.set_verbosity(logging.ERROR)
    try:
        _explain(options)
    except (ValueError, OSError, ImportError, RefusedRecord) as error:
        print(f"interpret: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


def _explain(options: argparse.Namespace) -> None:
    """Maps of one ECG."""
    if not options.output:
        raise ValueError("--output is missing: the folder for the maps of one ECG")
    folder = pathlib.Path(options.output)
    if folder.exists() and not options.overwrite:
        raise FileExistsError(f"{folder} exists; use another --output, or --overwrite")
    trained = load(options.run, options.stage)
    predicts = trained.predicts and not options.embedding
    program = trained.predictor if predicts else trained.embedder
    rows = _open(options, program)
    number = inference_input.find(rows, options.record)
    row = next(rows.read(number, 0))
    if row.ecg is None:
        raise ValueError(f"{row.file or row.record}: {row.refused}")
    if row.flags:
        print(f"{row.record}: {row.flags}")
    occluded = interpret_ecg.occlusion(
        program, row.ecg, options.seconds, options.column, progress=True
    )
    attentions = interpret_ecg.attention(program, row.ecg)
    rate = program.settings.rate
    measured = rows.measured(number)
    files = interpret_figures.write_maps(
        folder, row.record, row.ecg, measured, rate, attentions, occluded
    )
    if not options.input:
        files += _write_similarity(folder, Experiment.open(options.run), row)
    for line in _summary(occluded):
        print(line)
    print(f"{folder}: {', '.join(file.name for file in files)}")


def _open(options: argparse.Namespace, program: Program) -> Rows:
    declared = {name: getattr(options, name) for name in _DECLARED}
    if options.input:
        return open_rows(program, options.input, (), declared)
    path = Experiment.open(options.run).cohort.path
    return open_rows(program, str(path), (), declared)


def _write_similarity(folder: pathlib.Path, experiment: Experiment, row: Row) -> list[pathlib.Path]:
    """Similarity of ECG and CMR, where the run has a contrastive stage and the record both."""
    stages = [
        stage.name
        for stage in experiment.training_stages()
        if stage.config["objective"] == "clip" and experiment.run.done(stage.name)
    ]
    table = experiment.cohort.table(row.split)
    (rows,) = np.nonzero((table["record"] == row.record) & table["has_ecg"] & table["has_cmr"])
    if not stages or not len(rows):
        lacks = f"{row.record} has no CMR" if stages else "the run has no contrastive stage"
        print(f"no similarity of ECG and CMR: {lacks}")
        return []
    cmr, ecg = interpret.similarity(experiment, stages[-1], row.split, rows)
    return interpret_figures.write_similarity(folder, cmr, ecg)


_DECLARED = ("array", "rate", "unit", "leads", "preprocessed", "subject_pattern", "shortest")


def _summary(occluded: interpret_ecg.Occlusion) -> list[str]:
    """What is predicted, and where hiding a window changes it most."""
    lines = []
    for column, value, change in zip(
        occluded.columns, occluded.value, occluded.change, strict=True
    ):
        lead, window = np.unravel_index(np.abs(change).argmax(), change.shape)
        start, stop = occluded.edges[window : window + 2]
        text = f"most changed ({change[lead, window]:+.3g}) without {LEADS[lead]}, "
        text += f"{start:g} to {stop:g} s"
        said = column.name if np.isnan(value) else f"{column.name} {value:.4g}"
        lines.append(f"{said}; {text}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmcl_jax.interpret",
        description=interpret.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run",
        help="run directory, the --workdir of mmcl_jax.main; with --input also a folder that "
        "mmcl_jax.port wrote",
    )
    one = parser.add_argument_group("maps of one ECG")
    one.add_argument(
        "--input", default="", metavar="PATH", help="cohort, file or folder, as for mmcl_jax.embed"
    )
    one.add_argument(
        "--record",
        default="",
        metavar="NAME",
        help="of the input where that has several; without --input of the cohort of the run",
    )
    one.add_argument("--output", default="", metavar="DIR", help="folder to write")
    one.add_argument(
        "--stage", default="", metavar="NAME", help="of the run, such as finetune/CAD or mmcl"
    )
    one.add_argument(
        "--embedding", action="store_true", help="explain the embedding although the run predicts"
    )
    one.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="prediction to draw, such as LVEDV_mL; may be given several times; default: all",
    )
    one.add_argument(
        "--seconds", type=float, default=0.2, metavar="S", help="hidden at a time; default: 0.2"
    )
    one.add_argument("--overwrite", action="store_true", help="write into a folder that exists")
    add_declarations(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())

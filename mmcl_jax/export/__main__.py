"""`python -m mmcl_jax.export RUN --output DIR`."""

import argparse

from absl import logging

from mmcl_jax import export
from mmcl_jax.command import errors_in_one_line
from mmcl_jax.experiment import Experiment


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmcl_jax.export",
        description=export.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="run directory, the --workdir of mmcl_jax.main")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write, a new one")
    parser.add_argument(
        "--stage",
        default="",
        metavar="NAME",
        help="a stage, or the first parts of the names of several, such as finetune/CAD; default: "
        "all that predict labels, or the pre-trained encoder where there is none",
    )
    parser.add_argument(
        "--embedding",
        action="store_true",
        help="export the encoder: of the stage named, else the pre-trained one",
    )
    parser.add_argument("--card-only", action="store_true", help="write only the model card")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of an earlier export"
    )
    options = vars(parser.parse_args(arguments))
    # Orbax logs every file that it reads.
    logging.set_verbosity(logging.ERROR)
    with errors_in_one_line():
        experiment = Experiment.open(options.pop("run"))
        summary = export.export_run(experiment, **options)
        print(f"{options['output']}: ", end="")
        print(", ".join(f"{name} {value}" for name, value in summary.items()))


if __name__ == "__main__":
    main()

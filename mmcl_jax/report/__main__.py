"""`python -m mmcl_jax.report RUN` and `python -m mmcl_jax.report --workdir FOLDER`."""

import argparse

from mmcl_jax import report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmcl_jax.report",
        description=report.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("run", nargs="?", help="run directory: the folder that holds config.json")
    what.add_argument(
        "--workdir",
        nargs="+",
        metavar="FOLDER",
        help="folders below which the runs lie; the tables and figures of the paper",
    )
    parser.add_argument("--output", help="folder of the page (default: FOLDER/report)")
    parser.add_argument(
        "--resamples", type=int, default=2000, help="of the bootstrap between two methods"
    )
    options = parser.parse_args(arguments)
    if options.run and options.output:
        parser.error("--output goes with --workdir; the report of a run is written into the run")
    # The page needs no JAX; its command shares the error lines of the others.
    from mmcl_jax.command import errors_in_one_line

    with errors_in_one_line():
        if options.run:
            print(report.write_report(options.run))
        else:
            settings = {"output": options.output, "resamples": options.resamples}
            print(report.write_paper_report(options.workdir, **settings))


if __name__ == "__main__":
    main()

"""Predictions from ECGs: `python -m mmcl_jax.predict --run RUN --input PATH --output FILE`.

All finished fine-tuned stages of a run, or those that --stage names: probabilities of diseases,
phenotypes in their own unit. Where several seeds were trained, their mean and standard deviation.
A command that was stopped goes on where it was when it is started again.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code."""
    # Not above: worker processes import this module too.
    from mmcl_jax.inference.command import main

    return main("predict", __doc__, lambda run: run.predictor, arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Embeddings of ECGs: `python -m mmcl_jax.embed --run RUN --input PATH --output FILE`.

The encoder is that of the contrastive stage, else that of masked data modelling. A command that
was stopped goes on where it was when it is started again.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code."""
    # Not above: worker processes import this module too.
    from mmcl_jax.inference.command import main

    return main("embed", __doc__, lambda run: run.embedder, arguments)


if __name__ == "__main__":
    sys.exit(main())

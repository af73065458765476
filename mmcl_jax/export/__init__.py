"""Exports a run for use without this package: `python -m mmcl_jax.export RUN --output DIR`.

DIR gets model.jaxexport (StableHLO with the weights, for CPU, CUDA and TPU), model.json (input,
output, preprocessing), load.py and check.npz (an example that runs it), model_card.md and .json.
"""

from mmcl_jax.export.folder import export_run

__all__ = ["export_run"]

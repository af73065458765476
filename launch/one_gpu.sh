#!/usr/bin/env bash
# One GPU, an A40 (48 GB) by default. Install once: pip install -e ".[cuda]"
# Started again, it continues. Edit these lines, or set them in the environment:
COHORT=${COHORT:-}              # a prepared cohort; empty for the synthetic one
WORKDIR=${WORKDIR:-runs/mmcl}

set -euo pipefail
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
exec python -m mmcl_jax.main --config=configs/mmcl.py --processes=1 \
    --config.data.path="$COHORT" --workdir="$WORKDIR" "$@"

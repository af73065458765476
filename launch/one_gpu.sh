#!/usr/bin/env bash
# One GPU, an A40 by default. Install once: pip install -e ".[cuda]"
# Edit this line:
COHORT="" WORKDIR=runs/mmcl

exec python -m mmcl_jax.main --config=configs/mmcl.py --config.data.path="$COHORT" \
    --workdir="$WORKDIR" "$@"

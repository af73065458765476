#!/usr/bin/env bash
# One TPU VM (such as v5e-8), on it. Install once: pip install -e ".[tpu]"
# Edit this line; batch sizes must divide by the number of chips:
COHORT="" WORKDIR=runs/mmcl

exec python -m mmcl_jax.main --config=configs/mmcl.py --config.data.path="$COHORT" \
    --config.stages.finetune.batch_size=32 --workdir="$WORKDIR" "$@"

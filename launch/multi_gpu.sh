#!/usr/bin/env bash
# All GPUs of one machine: every batch is split over them. Install once: pip install -e ".[cuda]"
# Edit this line; CUDA_VISIBLE_DEVICES picks GPUs, and batch sizes must divide by their number:
COHORT="" WORKDIR=runs/mmcl CUDA_VISIBLE_DEVICES=0,1,2,3

export CUDA_VISIBLE_DEVICES
exec python -m mmcl_jax.main --config=configs/mmcl.py --config.data.path="$COHORT" \
    --config.stages.finetune.batch_size=32 --workdir="$WORKDIR" "$@"

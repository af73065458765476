#!/usr/bin/env bash
# All GPUs of one machine, in one process. Install once: pip install -e ".[cuda]"
# Started again, it continues. Edit these lines, or set them in the environment:
COHORT=${COHORT:-}              # a prepared cohort; empty for the synthetic one
WORKDIR=${WORKDIR:-runs/mmcl}
GPUS=${GPUS:-0,1,2,3}           # batch sizes must divide by their number

set -euo pipefail
export CUDA_VISIBLE_DEVICES=$GPUS
exec python -m mmcl_jax.main --config=configs/mmcl.py --processes=1 \
    --config.data.path="$COHORT" --config.stages.finetune.batch_size=32 --workdir="$WORKDIR" "$@"

#!/usr/bin/env bash
# What a pod of launch/kubernetes.yaml runs, in an image with this repository in /mmcl, installed
# with pip install -e ".[cuda]". What to edit is in that file; Kubernetes sets JOB_COMPLETION_INDEX.
set -euo pipefail
exec python -m mmcl_jax.main --config=configs/mmcl.py --config.data.path="$COHORT" \
    --config.stages.finetune.batch_size=32 --workdir="$WORKDIR" --coordinator="$COORDINATOR" \
    --processes="$PROCESSES" --process="$JOB_COMPLETION_INDEX" "$@"

#!/usr/bin/env bash
#SBATCH --job-name=mmcl --nodes=1 --gres=gpu:1 --cpus-per-task=8 --mem=64G --time=24:00:00
#SBATCH --signal=TERM@120 --requeue
# One node. SLURM's TERM, two minutes before the limit, saves; the requeued job continues.
# Edit this line:
COHORT="" WORKDIR=runs/mmcl

srun python -m mmcl_jax.main --config=configs/mmcl.py --config.data.path="$COHORT" \
    --workdir="$WORKDIR" "$@"
status=$?
if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"

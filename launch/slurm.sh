#!/usr/bin/env bash
#SBATCH --job-name=mmcl --time=24:00:00 --requeue --open-mode=append
#SBATCH --nodes=2 --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=8 --mem=0
#SBATCH --signal=TERM@180
# One task per GPU, on one node or several: sbatch launch/slurm.sh. Batch sizes must divide by their
# number. Three minutes before the limit SLURM sends TERM: the run saves, and the job starts again.
# Edit the lines above and these; WORKDIR is on a file system that all nodes share:
COHORT=${COHORT:-}              # a prepared cohort; empty for the synthetic one
WORKDIR=${WORKDIR:-runs/mmcl}

set -uo pipefail
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}   # srun does not take it from sbatch by itself
# A task that fails is noticed by the others, which end within a minute. Were they sent TERM by srun,
# a failure would look like the end of the time.
srun --kill-on-bad-exit=0 python -m mmcl_jax.main --config=configs/mmcl.py \
    --config.data.path="$COHORT" --config.stages.finetune.batch_size=32 --workdir="$WORKDIR" "$@"
status=$?
if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"

#!/usr/bin/env bash
#SBATCH --job-name=mmcl-sweep --array=0-7 --time=24:00:00 --requeue --open-mode=append
#SBATCH --nodes=1 --ntasks=1 --gres=gpu:1 --cpus-per-task=8 --mem=64G --signal=TERM@180
# The grid of fine-tuning, one job of one GPU for each target: sbatch launch/slurm_sweep.sh.
# Edit the lines above and these; the array counts the targets:
TARGETS=(CAD AF DM LV RV WT Ecc Err)
FROM=${FROM:-runs/mmcl}             # the run whose ECG encoder they start from
COHORT=${COHORT:-$FROM/cohort}      # the cohort of that run
WORKDIR=${WORKDIR:-runs/sweep}      # gets a run directory for each target

set -uo pipefail
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}   # srun does not take it from sbatch by itself
target=${TARGETS[$SLURM_ARRAY_TASK_ID]}
srun python -m mmcl_jax.main --config=configs/mmcl.py:sweep --processes=1 \
    --stages=finetune,evaluate --config.stages.finetune.targets="('$target',)" \
    --config.stages.finetune.init.ecg_encoder="$FROM:mmcl" \
    --config.data.path="$COHORT" --workdir="$WORKDIR/$target" "$@"
status=$?
if [ "$status" -eq 143 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"

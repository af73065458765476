#!/usr/bin/env bash
# A TPU slice of Google Cloud as a queued resource. From a machine with gcloud:
#   launch/tpu.sh create     asks for the slice; it may wait for hours in the queue
#   launch/tpu.sh status     until it says ACTIVE
#   launch/tpu.sh run        installs, and starts the run on all workers; again to continue
#   launch/tpu.sh delete     gives the slice back; a spot slice that was taken away (SUSPENDED or
#                            FAILED) is deleted, created and run again, and the run continues
# Edit these lines, or set them in the environment:
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-europe-west4-b}
NAME=${NAME:-mmcl}
TYPE=${TYPE:-v5litepod-16}                      # batch sizes must divide by its chips
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
PYTHON=${PYTHON:-python3.11}                    # 3.11 or newer, a package of the image's Ubuntu
SHARE=${SHARE:-10.0.0.2:/share}                 # NFS (Filestore) with the code, cohort and runs
CODE=${CODE:-/mnt/mmcl/code}                    # a checkout of this repository on that share
COHORT=${COHORT:-}                              # a prepared cohort; empty for the synthetic one
WORKDIR=${WORKDIR:-/mnt/mmcl/runs/mmcl}

set -euo pipefail
where=(--project="$PROJECT" --zone="$ZONE")
queue=(gcloud compute tpus queued-resources)

on_all_workers() {
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

action=${1:-}
if [ "$#" -gt 0 ]; then shift; fi
case "$action" in
create)
    "${queue[@]}" create "$NAME" "${where[@]}" --node-id="$NAME" --spot \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME"
    ;;
status) "${queue[@]}" describe "$NAME" "${where[@]}" --format="value(state.state)" ;;
run)
    on_all_workers "{ command -v mount.nfs && '$PYTHON' -m ensurepip --version; } >/dev/null ||
        { sudo apt-get update -q && sudo apt-get install -y -q nfs-common '$PYTHON-venv'; }"
    on_all_workers "sudo mkdir -p /mnt/mmcl && { mountpoint -q /mnt/mmcl ||
        sudo mount -t nfs '$SHARE' /mnt/mmcl; } && rm -rf ~/code && cp -r '$CODE' ~/code &&
        '$PYTHON' -m venv ~/mmcl && ~/mmcl/bin/pip install --quiet -e ~/code'[tpu]'"
    flags=(--config=configs/mmcl.py --config.data.path="$COHORT"
        --config.stages.finetune.batch_size=32 --workdir="$WORKDIR" "$@")
    on_all_workers "cd ~/code && ~/mmcl/bin/python -m mmcl_jax.main $(printf '%q ' "${flags[@]}")"
    ;;
delete) "${queue[@]}" delete "$NAME" "${where[@]}" --force ;;
*)
    echo "usage: $0 create|status|run|delete" >&2
    exit 2
    ;;
esac

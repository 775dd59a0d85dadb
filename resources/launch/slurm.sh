#!/usr/bin/env bash
# SFT, then DPO, on several machines under Slurm; started again by itself when it is preempted.
#
#   sbatch resources/launch/slurm.sh my.yaml
#
# All machines must see this folder. Two minutes before the time is up or the machine is taken away, Slurm sends
# SIGUSR1. All processes then write a checkpoint, the job goes back into the queue and continues from there. Stages
# that are finished are left out. Tested with a stand-in for Slurm; not yet run on a cluster.
#SBATCH --job-name=tunebook
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
recipe=${1:?the recipe: sbatch resources/launch/slurm.sh my.yaml}
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
step=

requeue() {
    echo "preempted: job $SLURM_JOB_ID goes back into the queue"
    if [ -n "$step" ]; then
        kill -TERM "$step" || true
        # 143 says that a checkpoint is there.
        wait "$step" || echo "the step ended with exit code $?"
    fi
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1 TERM

# A trap runs only between commands, so each goes to the background and is waited for.
work() {
    "$@" &
    step=$!
    wait "$step"
    step=
}

train() {
    # shellcheck disable=SC2016 - SLURM_NODEID differs from machine to machine
    work srun --kill-on-bad-exit=1 bash -c 'exec uv run python -m tunebook.training.launch \
        --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --master-addr "$1" \
        --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" -m tunebook "$2" --recipe "$3"' _ "$host" "$1" "$recipe"
}

# Rows are prepared once, before the machines would all do it.
work uv run tunebook prepare --recipe "$recipe"
train sft
work uv run tunebook pairs --recipe "$recipe"
train dpo
work uv run tunebook evaluate --recipe "$recipe"

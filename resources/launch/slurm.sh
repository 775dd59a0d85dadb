#!/usr/bin/env bash
# SFT, then DPO, on several machines under Slurm; started again by itself when it is preempted.
#
#   sbatch resources/launch/slurm.sh my.yaml
#
# All machines must see this folder. A minute before the time is up or the machine is taken away, Slurm sends
# SIGUSR1. The job then goes back into the queue and continues from its last checkpoint. Not yet run on a cluster.
#SBATCH --job-name=tunebook
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
recipe=${1:?the recipe: sbatch resources/launch/slurm.sh my.yaml}
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)

requeue() {
    echo "preempted: job $SLURM_JOB_ID goes back into the queue"
    kill -TERM "$step" || true
    wait "$step" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1 TERM

# Rows are prepared once, before the machines would all do it.
uv run tunebook prepare --recipe "$recipe"
for stage in sft dpo; do
    # A trap runs only between commands, so the step goes to the background and is waited for.
    # shellcheck disable=SC2016 - SLURM_NODEID differs from machine to machine
    srun --kill-on-bad-exit=1 bash -c 'uv run python -m tunebook.training.launch \
        --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --master-addr "$1" \
        --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" -m tunebook "$2" --recipe "$3"' _ "$host" "$stage" "$recipe" &
    step=$!
    wait "$step"
    [ "$stage" = sft ] && uv run tunebook pairs --recipe "$recipe"
done
uv run tunebook evaluate --recipe "$recipe"

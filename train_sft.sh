#!/usr/bin/env bash
# Supervised fine-tuning. Takes the options of `tunebook sft`:
#   bash train_sft.sh --recipe smollm2-math --set sft.learning_rate=2e-4
# On several GPUs (torchrun; NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT for several machines):
#   NPROC_PER_NODE=4 bash train_sft.sh --recipe my.yaml
set -euo pipefail
command -v uv >/dev/null || { echo "train_sft.sh: uv is not installed; run: pip install uv" >&2; exit 2; }
exec uv run --project "$(dirname "$0")" tunebook sft "$@"

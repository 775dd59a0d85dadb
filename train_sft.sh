#!/usr/bin/env bash
# Supervised fine-tuning. Takes the options of `tunebook sft`:
#   bash train_sft.sh --recipe smollm2-math --set sft.learning_rate=2e-4
# On several GPUs, by torchrun:
#   NPROC_PER_NODE=4 bash train_sft.sh --recipe my.yaml
set -euo pipefail
command -v uv >/dev/null || { echo "train_sft.sh: uv is not installed; run: pip install uv" >&2; exit 2; }
run=(uv run --project "$(dirname "$0")")
if [ -n "${NPROC_PER_NODE:-}" ]; then
    exec "${run[@]}" python -m tunebook.training.launch --standalone --nproc-per-node "$NPROC_PER_NODE" -m tunebook sft "$@"
fi
exec "${run[@]}" tunebook sft "$@"

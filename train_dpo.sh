#!/usr/bin/env bash
# Direct preference optimisation. Takes the options of `tunebook dpo`:
#   bash train_dpo.sh --recipe smollm2-math --set dpo.learning_rate=2e-4
# On several GPUs, by torchrun:
#   NPROC_PER_NODE=4 bash train_dpo.sh --recipe my.yaml
set -euo pipefail
command -v uv >/dev/null || { echo "train_dpo.sh: uv is not installed; run: pip install uv" >&2; exit 2; }
run=(uv run --project "$(dirname "$0")")
if [ -n "${NPROC_PER_NODE:-}" ]; then
    exec "${run[@]}" python -m tunebook.training.launch --standalone --nproc-per-node "$NPROC_PER_NODE" -m tunebook dpo "$@"
fi
exec "${run[@]}" tunebook dpo "$@"

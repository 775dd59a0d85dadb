#!/usr/bin/env bash
# Direct preference optimisation. Takes the options of `tunebook dpo`:
#   bash train_dpo.sh --recipe smollm2-math --set dpo.learning_rate=2e-4
# On several GPUs (torchrun; NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT for several machines):
#   NPROC_PER_NODE=4 bash train_dpo.sh --recipe my.yaml
set -euo pipefail
command -v uv >/dev/null || { echo "train_dpo.sh: uv is not installed; run: pip install uv" >&2; exit 2; }
exec uv run --project "$(dirname "$0")" tunebook dpo "$@"

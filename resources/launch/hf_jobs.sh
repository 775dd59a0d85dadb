#!/usr/bin/env bash
# The whole chain on a machine of Hugging Face, by HF Jobs:
#
#   bash resources/launch/hf_jobs.sh my-name/tunebook-runs qwen3-4b-instruct a10g-large
#
# The first word is a dataset repository of yours (private): this repository and the finished run lie there. Needs
# `hf auth login`. Not yet run.
set -euo pipefail
repo=${1:?your dataset repository: USER/NAME}
recipe=${2:?the recipe, by name or as a file of this folder}
flavor=${3:-a10g-large}
git archive --format=tar.gz --output=tunebook.tar.gz HEAD
hf upload "$repo" tunebook.tar.gz --repo-type dataset --private
hf jobs run --flavor "$flavor" --timeout 12h --secrets HF_TOKEN python:3.11 bash -c "
    pip install --quiet uv huggingface_hub &&
    hf download $repo tunebook.tar.gz --repo-type dataset --local-dir . && tar xzf tunebook.tar.gz && uv sync &&
    uv run tunebook run --recipe $recipe &&
    hf upload $repo runs runs --repo-type dataset"

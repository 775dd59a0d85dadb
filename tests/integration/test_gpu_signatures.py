"""What the recipes hand on is what Unsloth's GPU classes and generated configs take, by their signatures.

In a process of its own (`gpu_signatures.py`), with Unsloth's GPU code imported on a machine without a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tunebook.recipe.files import ROOT

RECIPES = ("smollm2-math", "gemma3n-mm-math", "qwen3-4b-instruct", "qwen3-4b-instruct:FastLanguageModel")


def test_every_argument_is_known_to_the_gpu_classes(tmp_path):
    environment = os.environ | {
        "UNSLOTH_ALLOW_CPU": "1",
        "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "compiled"),
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("UNSLOTH_FORCE_CPU", None)
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "gpu_signatures.py"), *RECIPES]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(ROOT / "src")},
        cwd=tmp_path,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    assert line, done.stdout[-1000:] + done.stderr[-3000:]
    found = json.loads(line.removeprefix("RESULT "))
    assert found["device"] == "cuda" and found["generated"] == [True, True]
    assert found["recipes"] == {recipe: {"load": [], "lora": [], "sft": [], "dpo": []} for recipe in RECIPES}

"""Scale one layer of a run's last adapter, evaluate the copy, and print what the gate says of it.

    uv run python scripts/damage.py --layer 28 --scale 11 --margin -1

The run `<run>-damaged` is a copy of a finished one; its base and SFT answers are kept. The task's rule asks
whether the damaged model is still better than the base, the other one whether other skills are as after SFT.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

from tunebook.evaluation import first_screen
from tunebook.evaluation.evaluate import evaluate
from tunebook.evaluation.gate import GateFailed, gate
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import DEFAULT
from tunebook.runs.files import file_hash, read_json, write_json

WEIGHTS = "adapter/adapter_model.safetensors"


def damage(stage: Path, layer: int, scale: float) -> int:
    """Multiply what an adapter adds to one layer; returns how many matrices that were.

    The stage's record gets the new file's hash: the damage is not one that a checksum finds.
    """
    from safetensors.torch import load_file, save_file

    weights = load_file(stage / WEIGHTS)
    scaled = 0
    for name, tensor in weights.items():
        if re.search(rf"\.layers\.{layer}\..*lora_B", name):
            weights[name] = tensor * scale
            scaled += 1
    save_file(weights, stage / WEIGHTS, metadata={"format": "pt"})
    record = read_json(stage / "stage.json")
    record["files"][WEIGHTS] = file_hash(stage / WEIGHTS)
    write_json(stage / "stage.json", record)
    return scaled


def main(
    layer: Annotated[int, typer.Option(help="The number of the layer.")],
    scale: Annotated[float, typer.Option(help="What its part of the adapter is multiplied by.")],
    recipe: str = DEFAULT,
    run: str | None = None,
    stage: str = "dpo",
    margin: float = -3,
) -> None:
    whole = load_recipe(recipe, run=run)
    name = f"{whole.run_dir.name}-damaged"
    rules = [
        {"first": "base", "second": stage, "at_least": 0},
        {"suite": "retention", "first": "sft", "second": stage, "at_least": margin},
    ]
    copy = load_recipe(recipe, run=name, overrides={"evaluate.retention": True, "evaluate.gate": rules})
    shutil.rmtree(copy.run_dir, ignore_errors=True)
    shutil.copytree(whole.run_dir, copy.run_dir, ignore=shutil.ignore_patterns("checkpoint-*", "export"))
    print(f"{damage(copy.run_dir / stage, layer, scale)} matrices of layer {layer} times {scale:g}")
    evaluate(copy)
    first_screen.show(copy)
    failures = gate(copy)
    for failure in failures:
        print(f"gate: {failure.text} (exit code {failure.code})")
    print(f"exit code {GateFailed(failures).exit_code if failures else 0}")


if __name__ == "__main__":
    typer.run(main)

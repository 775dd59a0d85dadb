"""The estimate of a stage's memory against what it takes: three sizes of model, SFT and DPO, on a CPU.

    uv run python benchmarks/memory.py --out benchmarks/records/memory.json

The embedded model, and a smaller and a larger llama with random weights, are trained on geometry problems for
some steps of four rows (DPO: two pairs), each in a process of its own. Measured is the growth of the resident
memory from before the model is loaded to its peak. (`memory.GAPS` was found with `--rows 8`, so it has not
seen these batches.)
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from tunebook.models import builtin
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe
from tunebook.runs.machine import environment
from tunebook.training import memory

SHAPES: dict[str, dict[str, int] | None] = {
    "30M": {
        "hidden_size": 320,
        "intermediate_size": 1280,
        "num_hidden_layers": 9,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
    },
    "135M": None,  # the embedded model
    "360M": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
}


def build(name: str, folder: Path) -> str:
    """A model of this shape with the embedded one's tokenizer; its path."""
    shape = SHAPES[name]
    if shape is None:
        return builtin.EMBEDDED
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    source = builtin.embedded_model()
    config = AutoConfig.from_pretrained(source, head_dim=64, **shape)
    LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def write_recipe(name: str, folder: Path, rows: int) -> Path:
    """The default recipe on a model of this shape, with batches of so many rows."""
    content = load_recipe("smollm2-math").model_dump(mode="json")
    content["name"] = f"memory-{name}"
    # The estimate counts whole prompts and plain attention.
    content["model"] |= {
        "base": build(name, folder / name),
        "share_prompts": False,
        "attn_implementation": "eager",
    }
    content["data"]["for_pairs"] = 0
    content["data"]["sources"] = [{"format": "geometry", "train": 24, "val": 0, "test": 0}]
    content["sft"] |= {"per_device_train_batch_size": rows, "eval_strategy": "no", "save_strategy": "no"}
    content["dpo"] |= {"per_device_train_batch_size": rows // 2, "max_steps": 6, "save_strategy": "no"}
    content["pairs"] |= {"methods": ["dataset"], "dataset": str(folder / f"{name}.jsonl"), "val": 0}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(recipe: Recipe, section: str) -> dict[str, Any]:
    """Run one stage in this process; its estimate and the growth of the resident memory, in bytes."""
    from tunebook.data.storage import load
    from tunebook.pairs.pairs import pairs
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    estimate = memory.preflight
    preflight = {}

    def measured_preflight(*args: Any) -> dict[str, Any]:
        preflight.update(estimate(*args))
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        preflight["before"] = status("VmRSS")
        return preflight

    # The estimate is made just before the model is loaded: the place to begin to measure.
    memory.preflight = measured_preflight
    if section == "sft":
        sft(recipe)
    else:
        with Path(str(recipe.pairs.dataset)).open("w") as out:
            for row in load(recipe, "train"):
                chosen = row["completion"][0]["content"]
                pair = {
                    "prompt": row["prompt"],
                    "chosen": chosen,
                    "rejected": re.sub(r"boxed\{.*\}", "boxed{12345}", chosen),
                    "answer": row["gold"],
                }
                out.write(json.dumps(pair) + "\n")
        pairs(recipe)
        dpo(recipe)
    return {
        "estimate": preflight["total"],
        "measured": status("VmHWM") - preflight["before"],
        "parts": preflight["parts"],
        "longest": preflight["longest"],
    }


def status(key: str) -> int:
    """What the kernel says of this process, in bytes: `VmRSS` now, `VmHWM` at its peak."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) * 1024


def main(
    rows: Annotated[int, typer.Option(help="Of a batch in SFT; DPO has half as many pairs.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Used by the benchmark itself: train one recipe in this process.")
    ] = None,
    section: Annotated[str, typer.Option(help="... and which stage of it.")] = "sft",
) -> None:
    if recipe:
        print(json.dumps(train(load_recipe(recipe), section)))
        return
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"TUNEBOOK_RUNS": folder, "UNSLOTH_FORCE_CPU": "1"}
        for name in SHAPES:
            path = write_recipe(name, Path(folder), rows)
            for stage in ("sft", "dpo"):
                command = [sys.executable, __file__, "--recipe", str(path), "--section", stage]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
                result = json.loads(done.stdout.splitlines()[-1])
                result["error"] = round(result["estimate"] / result["measured"] - 1, 3)
                results[f"{stage} {name}"] = result
                estimate, measured = _gb(result["estimate"]), _gb(result["measured"])
                print(f"{stage} {name:5} estimate {estimate} GB, measured {measured} GB", flush=True)
    if out:
        here = environment()
        record = {
            "results": results,
            "settings": {"rows": rows},
            "hardware": here["hardware"],
            "versions": here["versions"],
        }
        out.write_text(json.dumps(record, indent=1) + "\n")
    print("| stage | estimate GB | measured GB | difference |\n| --- | --- | --- | --- |")
    for name, result in results.items():
        estimate, measured = _gb(result["estimate"]), _gb(result["measured"])
        print(f"| {name} | {estimate} | {measured} | {result['error']:+.0%} |")


def _gb(size: int) -> str:
    return f"{size / 2**30:.2f}"


if __name__ == "__main__":
    typer.run(main)

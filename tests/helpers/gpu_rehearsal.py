"""The process of the GPU rehearsal: SFT, pairs, DPO, answers and exports through Unsloth's GPU classes.

python gpu_rehearsal.py MODEL TOKENIZER RECIPE...

Writes a tiny text model to MODEL, runs the recipes, and prints RESULT with what was seen, as JSON.
"""

# ruff: noqa: E402 - Unsloth's GPU classes come before everything else

from __future__ import annotations

import gpu_fakes

gpu_fakes.install()

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tiny_text
import trl
import unsloth
from safetensors import safe_open

from tunebook.data.prepare import prepare
from tunebook.data.rows import images_of
from tunebook.data.storage import read_rows
from tunebook.export.export import Unverified, export
from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import Local
from tunebook.models import adapters, loading
from tunebook.pairs import pair, pairs
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import log_history
from tunebook.training import arguments, audits
from tunebook.training.dpo import dpo
from tunebook.training.sft import sft

real_load = unsloth.FastModel.from_pretrained
real_add_lora = adapters.add_lora
real_save_adapter = adapters.save_adapter
real_audit_masks = audits.audit_masks
real_callbacks = arguments.trainer_callbacks

seen: dict[str, Any] = {}
"""What is noted of the recipe that runs."""


def load(**options: Any) -> tuple[Any, Any]:
    model, processor = real_load(**options)
    seen["processors"].append(type(processor).__name__)
    seen["classes"].append(type(model).__module__)
    return model, processor


def add_lora(model: Any, recipe: Recipe) -> Any:
    model = real_add_lora(model, recipe)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    seen["lora"] = sorted({name.split(".lora_")[0] for name in trained})
    return model


def audit_masks(trainer: Any, tokenizer: Any) -> dict[str, Any]:
    """Note the text of the tokens that are trained on in the first four rows."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    seen["unpadded"] = "attention_mask" not in batch
    labels = batch["labels"]
    if seen["unpadded"]:
        # The rows stand one behind the other; positions start anew with each.
        starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
        labels = labels[0].tensor_split(starts[1:])
    seen["trained"] = [tokenizer.decode(row[row != -100]) for row in labels]
    return real_audit_masks(trainer, tokenizer)


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    seen["trained_weight"].append(weight(model, "default"))
    real_save_adapter(model, tokenizer, folder)


def weight(model: Any, adapter: str) -> float:
    """The size of an adapter's B matrices, which are 0 before training."""
    total = 0.0
    for name, parameter in model.named_parameters():
        if f"lora_B.{adapter}." in name:
            total += float(parameter.detach().abs().sum())
    return total


def right_and_wrong(work: Any) -> Iterator[pair.Pair]:
    """Pairs instead of samples: the solution, and it with a wrong box."""
    for row in work.rows:
        right = pair.reference(row, work.count_tokens)
        box = f"boxed{{{row['gold']}}}"
        wrong = right | {"text": right["text"].replace(box, "boxed{1234}")}
        yield pair.make_pair(work.recipe.pairs, row, right, wrong, "given")


class Terminate(trl.trainer.sft_trainer.TrainerCallback):  # type: ignore[misc]
    """Sends SIGTERM to this process in the third step, as a cluster does that wants its machine back."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def terminated_once(recipe: Recipe) -> int | None:
    """SFT that is ended in its third step; returns its exit code."""
    arguments.trainer_callbacks = lambda *given: [*real_callbacks(*given), Terminate()]
    try:
        sft(recipe)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        arguments.trainer_callbacks = real_callbacks
    return None


def exported(recipe: Recipe) -> dict[str, Any]:
    """The parity table of the exports, whether they are equal or not."""
    try:
        return export(recipe)
    except Unverified as unverified:
        return unverified.rows


def packed(recipe: Recipe) -> dict[str, Any]:
    """SFT alone, with several rows one behind the other in a sequence."""
    seen.clear()
    seen.update(processors=[], classes=[], trained_weight=[])
    rows = prepare(recipe)["rows"]["train"]
    losses = []
    record = sft(recipe)
    for entry in log_history(recipe.run_dir / "sft"):
        if "loss" in entry:
            losses.append(float(entry["loss"]))
    return {"rows": rows, "audit": record["audit"], "metrics": record["metrics"], "losses": losses}


def rehearse(recipe: Recipe) -> dict[str, Any]:
    """Run the stages of a recipe; returns what was seen of them."""
    seen.clear()
    seen.update(processors=[], classes=[], trained_weight=[])
    run = recipe.run_dir
    if recipe.name == "text":
        seen["ended"] = terminated_once(recipe)
    seen["sft"] = sft(recipe)
    pairs.pairs(recipe)
    seen["dpo"] = dpo(recipe)
    seen["losses"] = {}
    for stage in ("sft", "dpo"):
        entries = log_history(run / stage)
        seen["losses"][stage] = [float(entry["loss"]) for entry in entries if "loss" in entry]

    model, processor = loading.load_model(recipe)
    model = adapters.load_adapters(model, {stage: run / stage / "adapter" for stage in ("sft", "dpo")})
    seen["loaded_weight"] = [weight(model, stage) for stage in ("sft", "dpo")]
    with safe_open(run / "dpo" / "adapter" / "adapter_model.safetensors", "pt") as file:
        seen["saved"] = list(file.keys())

    rows = read_rows(recipe, run / "pairs" / "train.parquet")
    images = [images_of(row) for row in rows.select(range(2))]
    with adapters.use_adapter(model, "dpo") as active:
        batches = list(generate(Local(active, processor), rows["prompt"][:2], Sampling(3, 2), images))
    seen["answers"] = [answer.tokens for batch in batches for answer in batch.values()]
    del model, active
    if recipe.name == "text":
        seen["exports"] = exported(recipe)
    return dict(seen)


def main(model: str, tokenizer: str, *recipes: str) -> None:
    unsloth.FastModel.from_pretrained = staticmethod(load)
    adapters.add_lora = add_lora
    adapters.save_adapter = save_adapter
    audits.audit_masks = audit_masks
    pairs.METHODS["on_policy"] = right_and_wrong
    tiny_text.qwen3(Path(model), Path(tokenizer))
    trainers = [trl.SFTTrainer.__module__, trl.DPOTrainer.__module__]
    result: dict[str, Any] = {"device": unsloth.DEVICE_TYPE, "trainers": trainers}
    for path in recipes:
        recipe = load_recipe(path)
        result[recipe.name] = packed(recipe) if recipe.name == "packed" else rehearse(recipe)
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])

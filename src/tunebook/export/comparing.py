"""Around the comparison of an export with the adapter: rounding, memory, what 4-bit training saw."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tunebook.checkers.check import Check
from tunebook.data.rows import evenly
from tunebook.evaluation.items import Item
from tunebook.export import parity
from tunebook.export.measure import Measured, measure
from tunebook.generation.local import local
from tunebook.models import adapters, loading
from tunebook.recipe.sections import Recipe
from tunebook.runs.machine import free_ram
from tunebook.runs.stage import Stage


def rounding_loss(model: Any, folder: Path) -> float | None:
    """The share of what the adapter changes that rounding the merged weights to 16 bits has lost.

    The norm of the error over that of the change, of some layers. A short training changes less than the last
    digit of a weight in many places. None where the layers have other names in the files.
    """
    import torch
    from safetensors import safe_open

    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            files.update(dict.fromkeys(file.keys(), path))
    layers = {}
    for name, module in model.named_modules():
        key = f"{name.removeprefix('base_model.model.')}.weight"
        if hasattr(module, "get_delta_weight") and key in files:
            layers[key] = module
    lost = whole = 0.0
    for key in evenly(list(layers), 16):
        with safe_open(files[key], "pt") as file, torch.no_grad():
            change = layers[key].get_delta_weight("default").float()
            merged = file.get_tensor(key).to(change.device).float()
            error = merged - layers[key].base_layer.weight.float() - change
        lost += float(error.square().sum())
        whole += float(change.square().sum())
    return math.sqrt(lost / whole) if whole else None


def with_rounding(row: dict[str, Any], merged: Stage) -> dict[str, Any]:
    """A row of the parity table with what rounding has lost, which is a reason where something differs."""
    loss = merged.result.get("rounding_loss")
    if row["differs"] and loss and loss > 0.1:
        reason = f"rounding to 16 bits has lost {loss:.0%} of what the adapter changes, which is little"
        row = row | {"differs": [*row["differs"], reason]}
    return row | {"rounding_loss": loss}


def too_large(weights: int, reference: Measured, name: str) -> dict[str, Any] | None:
    """A row that says that memory is not enough for a comparison, if so."""
    size = 2 if name.startswith("gguf-") or reference.dtype != "float32" else 4
    needed = int(1.2 * size * weights)
    free = free_ram()
    if reference.device == "cuda" and not name.startswith("gguf-"):
        import torch

        free = torch.cuda.mem_get_info()[0]
    if needed <= free:
        return None
    reason = (
        f"not compared: that takes about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; "
        "`tunebook export --check` compares where there is more"
    )
    return {"items": 0, "differs": [reason]}


def in_4_bit(recipe: Recipe, stage: str, reference: Measured, items: list[Item]) -> dict[str, Any]:
    """How far the 4-bit model that the adapter was trained on is from the 16-bit one that is exported."""
    model, tokenizer = loading.load_model(recipe)
    model = adapters.load_adapters(model, {"default": recipe.run_dir / stage / "adapter"})
    forced = [question.forced for question in reference.questions]
    with local(model, tokenizer, "default") as source:
        measured = measure(source, items, recipe.evaluate.max_new_tokens, forced)
    row = parity.compare("4", reference, measured, items, Check(recipe.check))
    note = "what 4-bit training saw, against the 16-bit weights that are exported"
    return row | {"differs": [], "note": note}

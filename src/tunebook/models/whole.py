"""A trained model in 16 bits with its adapter on it, as it is merged: for exports and for engines."""

from __future__ import annotations

from typing import Any

from tunebook.models import adapters, backend, builtin, loading
from tunebook.models.start import with_shape_of_start
from tunebook.recipe.sections import Recipe


def load_whole(recipe: Recipe, stage: str) -> tuple[Any, Any]:
    """The 16-bit base (on a CPU computed in float32) with the adapter on it, as Unsloth saves it.

    After QLoRA too: an adapter belongs on the original weights, not on 4-bit ones turned back.
    """
    if recipe.model.load_in_4bit and recipe.model.base != builtin.EMBEDDED:
        print(
            f"Merging needs the 16-bit weights of {recipe.model.base}; "
            "they are fetched where they are not in the cache."
        )
    # On a CPU in float32, as the fresh processes compute: what differs is then the export's.
    changes = {"load_in_4bit": False, "dtype": "float32" if backend.backend() == "cpu" else None}
    whole = recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})
    model, tokenizer = loading.load_model(whole)
    # An adapter that SFT made has the shape of the recipe; DPO's may have that of `dpo.start`.
    if stage != "sft":
        whole = with_shape_of_start(whole)
    model = adapters.add_lora(model, whole)
    return adapters.restore_lora(model, recipe.run_dir / stage / "adapter"), tokenizer

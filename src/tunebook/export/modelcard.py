"""The README of an exported model, from what the run recorded.

`modelcard.md.jinja` is its text: how to run it, data, results with intervals, training, limits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tunebook.data.prompts import trained_systems
from tunebook.evaluation import first_screen
from tunebook.evaluation.tables import accuracy_table, loss_table
from tunebook.models import builtin, chat_template
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json
from tunebook.runs.manifest import manifest, recorded_recipe
from tunebook.runs.stages import training_behind

HUB_NAMES = {builtin.EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}

TEMPLATE = Path(__file__).with_name("modelcard.md.jinja")


def card(recipe: Recipe, stage: str, name: str, default_system: str | None = None) -> str:
    """Markdown with a metadata block, for the export `name` of the model that `stage` trained.

    Args:
        default_system: The system message that the chat template adds to a conversation without one.
    """
    from huggingface_hub import ModelCard, ModelCardData

    target = name.partition("-")[0]  # "gguf" of "gguf-q8_0"
    base = HUB_NAMES.get(recipe.model.base, recipe.model.base)
    sees_images = chat_template.has_processor(recipe.run_dir / stage / "adapter")
    # A run folder may have lost its manifest: what the stages themselves recorded is the same.
    stages = read_json(recipe.run_dir / "manifest.json").get("stages") or manifest(recipe.run_dir)["stages"]
    # DPO alone has no SFT behind it.
    trained = [name for name in training_behind(stage) if name in stages]
    data = ModelCardData(
        base_model=base,
        license=recipe.export.license or "unknown",
        library_name={"adapter": "peft", "merged": "transformers"}.get(target, "gguf"),
        pipeline_tag="image-text-to-text" if sees_images else "text-generation",
        tags=["tunebook", "unsloth", "trl", *trained],
        base_model_relation={"adapter": "adapter", "gguf": "quantized"}.get(target, "finetune"),
    )
    text = ModelCard.from_template(
        data,
        str(TEMPLATE),
        run=recipe.run_dir.name,
        recipe=recipe.name,
        base=base,
        methods=" and then ".join(method.upper() for method in trained),
        target=target,
        sees_images=sees_images,
        file=f"{recipe.run_dir.name}-{name.removeprefix('gguf-')}.gguf",
        system_prompts=trained_systems(recipe),
        default_system=default_system,
        settings=yaml.safe_dump(_settings(stages, trained), sort_keys=False).strip(),
        weights_license=recipe.export.license,
        data_license=recipe.export.data_license,
        **_data(recipe, stages, trained),
        **_results(recipe, stage),
    )
    return f"{text}\n"


def _data(recipe: Recipe, stages: dict[str, Any], trained: list[str]) -> dict[str, Any]:
    """What the model was trained on."""
    rows = stages.get("data", {}).get("rows", {})
    # Some train rows may be for pairs alone: the SFT stage knows how many it has seen.
    sft_rows = stages.get("sft", {}).get("rows", rows).get("train", 0)
    pair_rows = None
    if "dpo" in trained:
        pair_rows = stages.get("pairs", {}).get("rows", {}).get("train", 0)
    sources = []
    for source in recipe.data.sources:
        sources.append(str(getattr(source, "path", f"`{source.format}` (tunebook's own)")))
    if "dpo" in trained and recipe.pairs.dataset:
        sources.append(recipe.pairs.dataset)
    return {
        "sources": ", ".join(sources),
        "rows": rows,
        "sft_rows": sft_rows,
        "pair_rows": pair_rows,
        "pair_methods": ", ".join(recipe.pairs.methods),
    }


def _results(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The accuracies, or losses, of the base model and of this one; empty when it has not been evaluated."""
    summary = read_json(recipe.run_dir / "eval" / "summary.json")
    results = summary.get("stages", {})
    if stage not in results:
        return {}
    # The other stages are other models.
    of_models = {name: shares for name, shares in results.items() if name in ("base", stage)}
    by_loss = "loss" in results[stage]
    table = loss_table(of_models) if by_loss else accuracy_table(of_models)
    return {
        "sentence": first_screen.sentence(summary, stage),
        "results": table.markdown(),
        "by_loss": by_loss,
        "split": summary["split"],
        "n": results[stage]["n"],
    }


def _settings(stages: dict[str, Any], trained: list[str]) -> dict[str, Any]:
    """What the stages were trained with, which the recipe may no longer say."""
    recipe = recorded_recipe(stages)
    settings = {"max_seq_length": recipe["model"]["max_seq_length"]}
    for section in ("seed", "lora", *trained):
        settings[section] = recipe[section]
    return settings

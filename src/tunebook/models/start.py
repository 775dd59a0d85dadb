"""The model that DPO starts from where SFT is no part of the run: an adapter that was trained elsewhere.

`dpo.start` names it. It is copied into the run folder as the stage `start`, so that pairs, DPO, evaluation
and export find it where they find every other adapter.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tunebook.models import hub
from tunebook.recipe.errors import UserError, first_line, say_once
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import file_hash, read_json
from tunebook.runs.stage import Stage
from tunebook.runs.stages import policy_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# What decides the shape of an adapter and what its weights do, with PEFT's values for a key that is missing.
SHAPE: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "target_modules": None,
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "layers_to_transform": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}

# Keys that change what an adapter is, with the values that a LoRA adapter made here has. With any other value
# Unsloth would build another adapter than the one that was trained.
USUAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "exclude_modules": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "lora_bias": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
}


def start(recipe: Recipe) -> None:
    """Copy the adapter of `dpo.start` into the run folder, unless it lies there already.

    Raises UserError when there is no such adapter, and when it is not a LoRA adapter in safetensors.
    """
    if policy_name(recipe, 1) != "start":
        return
    stage = start_stage(recipe)
    if stage.done or stage.await_rank_0():
        return
    source = _folder(recipe)
    config = read_json(source / CONFIG)
    if config.get("peft_type") != "LORA":
        raise UserError(f"dpo.start: {source} is no LoRA adapter (peft_type {config.get('peft_type')})")
    if not (source / WEIGHTS).is_file():
        raise UserError(
            f"dpo.start: {source} has no {WEIGHTS}; save it with `save_pretrained(safe_serialization=True)`, "
            "pickled weights are not read"
        )
    for key, usual in USUAL.items():
        if key in config and config[key] not in usual:
            raise UserError(
                f"dpo.start: {source} was trained with {key}={config[key]}, which DPO cannot go on from: "
                "merge it (merge_and_unload) and name that folder as model.base"
            )
    base = config.get("base_model_name_or_path")
    if base and Path(base).name != Path(recipe.model.base).name:
        print(
            f"Warning: dpo.start was trained on {base}, model.base is {recipe.model.base}: "
            "it is another model unless the weights are the same"
        )
    with stage.open(resume=False) as folder:
        (folder / "adapter").mkdir()
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(source / name, folder / "adapter" / name)
        stage.record = {"source": str(recipe.dpo["start"]), "trained_on": base}


def start_stage(recipe: Recipe) -> Stage:
    """The stage that `start` fills. Raises UserError when `dpo.start` names no adapter."""
    source = _folder(recipe)
    inputs = {}
    for file in (CONFIG, WEIGHTS):
        if (source / file).is_file():
            inputs[file] = file_hash(source / file)
    settings = {"start": recipe.dpo["start"], "model": recipe.model.model_dump(mode="json")}
    return Stage(recipe, "start", settings, inputs)


def with_shape_of_start(recipe: Recipe) -> Recipe:
    """The recipe as it is, or with the shape of the adapter that `dpo.start` names, copied by `start`."""
    if policy_name(recipe, 1) != "start":
        return recipe
    return with_shape_of(recipe, recipe.run_dir / "start" / "adapter")


def with_shape_of(recipe: Recipe, adapter: Path) -> Recipe:
    """The recipe with the `lora` section that a saved adapter was trained with; says what that changes."""
    config = read_json(adapter / CONFIG)
    lora = dict(recipe.lora)
    changes = []
    # What the adapter has by PEFT's own default and the recipe does not name stays unsaid.
    for key, default in SHAPE.items():
        saved = config.get(key, default)
        if saved in (default, None, []) and key not in lora:
            continue
        if key in lora and not _same(lora[key], saved):
            changes.append(f"{key} {saved}, not {lora[key]}")
        lora[key] = saved
    if changes:
        say_once(f"lora as dpo.start was trained: {'; '.join(changes)}")
    return recipe.model_copy(update={"lora": lora})


def _same(ours: Any, saved: Any) -> bool:
    if isinstance(ours, list) and isinstance(saved, list):
        return sorted(ours) == sorted(saved)
    return bool(ours == saved)


def _folder(recipe: Recipe) -> Path:
    """Where the adapter's files lie: a folder, or a hub id's copy in the cache. Raises UserError."""
    name = str(recipe.dpo["start"])
    place = recipe.find_path(name)
    if not place.is_dir():
        place = _fetched(name)
    if (place / CONFIG).is_file():
        return place
    # A stage's folder has one adapter, a run several.
    if (place / "adapter" / CONFIG).is_file():
        return place / "adapter"
    adapters = sorted(path.parent for path in place.glob(f"*/adapter/{CONFIG}"))
    if adapters:
        names = " or ".join(str(path) for path in adapters)
        raise UserError(f"dpo.start: {name} is a run with adapters of its own: name {names}")
    raise UserError(
        f"dpo.start: {place} holds no {CONFIG}; of a whole model say `model.base: {name}` instead"
    )


def _fetched(name: str) -> Path:
    """The folder of the cache with an adapter's two files from the hub. Raises UserError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    hub.use_if_reachable()
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(
            f"dpo.start: {name!r} is neither `sft` nor `base`, no folder here and no hub id that can be "
            f"fetched ({first_line(error)})"
        ) from None

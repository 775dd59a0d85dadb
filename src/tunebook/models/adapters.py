"""LoRA adapters: put on, restored, loaded, chosen, saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunebook.models import loading
from tunebook.models.backend import on_cpu
from tunebook.models.cpu import shared_prefixes
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import intact, read_json
from tunebook.runs.machine import rank


def add_lora(model: Any, recipe: Recipe) -> Any:
    """Put a fresh LoRA adapter on a base model, initialised from the recipe's seed."""
    from unsloth import FastModel

    given = {"random_state": recipe.seed, "use_gradient_checkpointing": False, **recipe.lora}
    if on_cpu() and hasattr(model.config, "vision_config"):
        given["target_modules"] = _scope(model, given)
    if on_cpu() and recipe.model.share_prompts:
        shared_prefixes.share(model)
    return FastModel.get_peft_model(model, **given)


def _scope(model: Any, given: dict[str, Any]) -> str:
    """The layers that the `finetune_*` switches choose, as the GPU backend chooses them; the CPU backend ignores the switches, and
    would train the audio tower too."""
    from unsloth_zoo.peft_utils import get_peft_regex

    targets = given.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        return targets
    switches = {key: value for key, value in given.items() if key.startswith("finetune_")}
    return str(
        get_peft_regex(model, **switches, target_modules=targets if isinstance(targets, list) else None)
    )


def restore_lora(model: Any, path: Path) -> Any:
    """Put a saved adapter's weights into a fresh one of the same shape, to train it further on either backend.

    Raises UserError when the shapes differ (`lora` was changed since it was trained) or the file is damaged.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(intact(path) / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"no whole adapter_model.safetensors in {path} ({first_line(error)}): train it again"
        ) from None
    saved, fresh = read_json(path / "adapter_config.json"), model.peft_config[model.active_adapter]
    odd = [
        f"{k} was {saved[k]}"
        for k in ("r", "lora_alpha", "use_rslora")
        if saved.get(k, getattr(fresh, k)) != getattr(fresh, k)
    ]
    try:
        found = set_peft_model_state_dict(model, weights)
        odd += [k for k in (*found.missing_keys, *found.unexpected_keys) if "lora_" in k]
    except RuntimeError as error:
        odd.append(str(error))
    if odd:
        raise UserError(
            f"the adapter in {path} does not fit the recipe's lora section ({odd[0][:80]}): give it as it was, or train it again with "
            "`uv run tunebook sft`"
        )
    return model


def load_adapters(model: Any, adapters: dict[str, Path]) -> Any:
    """Put saved adapters on a base model for inference; choose one with `use_adapter`.

    In the base model's precision: kept in float32, as they are trained, they cost a third of the speed on a CPU.

    Raises UserError when one is damaged.
    """
    from peft import PeftModel

    for name, path in adapters.items():
        if not (
            path / "adapter_model.safetensors"
        ).is_file():  # PEFT would take a pickled adapter_model.bin in its place
            raise UserError(f"no adapter_model.safetensors in {path}: train it again")
        intact(path)
        if isinstance(model, PeftModel):
            model.load_adapter(str(path), adapter_name=name, autocast_adapter_dtype=False)
        else:
            model = PeftModel.from_pretrained(
                model, str(path), adapter_name=name, autocast_adapter_dtype=False
            )
    return model


@contextlib.contextmanager
def use_adapter(model: Any, name: str | None) -> Iterator[Any]:
    """The model with one of its adapters, or as its base (`None`), ready for generation."""
    from unsloth import FastModel

    FastModel.for_inference(model)
    if name is not None:
        model.set_adapter(name)
    with (
        model.disable_adapter()
        if name is None and hasattr(model, "disable_adapter")
        else contextlib.nullcontext()
    ):
        yield model


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Adapter (safetensors) and tokenizer. TRL's frozen `ref` adapter, if there, is left out, and so are embeddings that were not trained
    (not in `modules_to_save`): Unsloth on a GPU adds a padding token to a vocabulary that has none, and PEFT would save them for that.

    Of several processes all must call it (a sharded model is gathered from all); the first one writes.
    """
    how = {"safe_serialization": True, "save_embedding_layers": False, "is_main_process": rank() == 0}
    model.save_pretrained(folder, selected_adapters=["default"], **how)
    if rank() == 0:
        tokenizer.save_pretrained(folder)


def save_merged(model: Any, tokenizer: Any, folder: Path) -> None:
    """The base with its adapter merged into it, in 16 bit (safetensors), and tokenizer.

    `model` comes from `add_lora`: Unsloth ties its save function to that, on either backend.
    """
    model.save_pretrained_merged(str(folder), tokenizer, save_method="merged_16bit")


def load_stages(recipe: Recipe, names: Iterable[str]) -> tuple[Any, Any]:
    """The base model, once, with the adapters of the stages on it."""
    model, tokenizer = loading.load(recipe)
    return load_adapters(
        model, {name: recipe.run_dir / name / "adapter" for name in names if name != "base"}
    ), tokenizer

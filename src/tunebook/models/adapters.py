"""LoRA adapters: put on, restored, loaded, chosen, saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunebook.models import loading
from tunebook.models.backend import on_cpu
from tunebook.recipe.errors import UserError, first_line, one_line, shorten
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import intact, read_json
from tunebook.runs.machine import rank

USUAL = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_gradient_checkpointing")
"""Keys of `lora` that stand in most recipes."""


def add_lora(model: Any, recipe: Recipe) -> Any:
    """Put a fresh LoRA adapter on a base model, initialised from the recipe's seed.

    It is Unsloth's `FastModel.get_peft_model` with `lora_arguments`.

    Raises UserError for layers that the model does not have, and for what PEFT refuses.
    """
    import unsloth

    settings = lora_arguments(recipe)
    check_rank(model, settings.get("r"))
    for key in ("target_modules", "modules_to_save"):
        check_targets(model, settings.get(key), key)
    check_layers(model.config.get_text_config().num_hidden_layers, settings.get("layers_to_transform"))
    if on_cpu() and hasattr(model.config, "vision_config"):
        settings["target_modules"] = _target_modules(model, settings)
    try:
        return getattr(unsloth, recipe.model.loader).get_peft_model(model, **settings)
    except (ValueError, TypeError, LookupError, AttributeError, ImportError, NotImplementedError) as error:
        # PEFT seldom names the key, and what nearly every recipe sets is not the cause.
        unusual = [f"{key}={shorten(value)}" for key, value in recipe.lora.items() if key not in USUAL]
        cause = f" ({', '.join(unusual)})" if unusual else ""
        raise UserError(f"lora{cause}: {one_line(error)}") from error


def lora_arguments(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe `FastModel.get_peft_model` is given."""
    return {"random_state": recipe.seed, "use_gradient_checkpointing": False, **recipe.lora}


def check_rank(model: Any, rank: int | None) -> None:
    """Raises UserError for a rank that the model's layers cannot have: memory would run out, for nothing."""
    widths = [getattr(module, "in_features", 0) for module in model.modules()]
    widest = max(widths, default=0)
    if rank and widest and rank > widest:
        raise UserError(
            f"lora.r: {rank} is more than the model's widest layer has inputs ({widest}); "
            "usual are 8, 16, 32 or 64"
        )


def check_targets(model: Any, targets: Any, key: str = "target_modules") -> None:
    """Raises UserError when a name in this key of `lora` is that of no layer: PEFT passes over it.

    A regular expression and `all-linear` are left to PEFT.
    """
    if not isinstance(targets, list | tuple):
        return
    names = [name for name, _ in model.named_modules()]
    linear = set()
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if hasattr(module, "in_features") and not last.isdigit():
            linear.add(last)
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(
                f"lora.{key}: the model has no layer {shorten(target)}; "
                f"its linear layers are {', '.join(sorted(linear))}"
            )


def check_layers(count: int, layers: list[int] | int | None) -> None:
    """Raises UserError for a number in `lora.layers_to_transform` that no layer has: PEFT passes over it."""
    for layer in [layers] if isinstance(layers, int) else layers or []:
        if not 0 <= layer < count:
            raise UserError(
                f"lora.layers_to_transform: the model has no layer {layer}; its layers are 0 to {count - 1}"
            )


def _target_modules(model: Any, settings: dict[str, Any]) -> str:
    """The layers that the `finetune_*` switches choose, as a regular expression over module names.

    The GPU backend chooses them like this. The CPU backend ignores the switches, and would train the audio
    tower too.
    """
    from unsloth_zoo.peft_utils import get_peft_regex

    targets = settings.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        return targets
    switches = {key: value for key, value in settings.items() if key.startswith("finetune_")}
    names = targets if isinstance(targets, list) else None
    return str(get_peft_regex(model, **switches, target_modules=names))


def restore_lora(model: Any, path: Path) -> Any:
    """Put a saved adapter's weights into a fresh one of the same shape, to train it further.

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

    differences = []
    # These three change what the same weights do, and do not show in the shapes.
    saved = read_json(path / "adapter_config.json")
    fresh = model.peft_config[model.active_adapter]
    for name in ("r", "lora_alpha", "use_rslora"):
        if name in saved and saved[name] != getattr(fresh, name):
            differences.append(f"{name} was {saved[name]}")
    try:
        result = set_peft_model_state_dict(model, weights)
        names = (*result.missing_keys, *result.unexpected_keys)
        differences += [name for name in names if "lora_" in name]
    except RuntimeError as error:  # tensors of another shape
        differences.append(str(error))
    if differences:
        raise UserError(
            f"the adapter in {path} does not fit the recipe's lora section ({differences[0][:80]}): "
            "give it as it was, or train it again with `uv run tunebook sft`"
        )
    return model


def load_adapters(model: Any, adapters: dict[str, Path]) -> Any:
    """Put saved adapters on a base model for inference; choose one with `use_adapter`.

    In the base model's precision: in float32, as they are trained, they cost a third of the speed on a CPU,
    and some 500 casts a token on a GPU.

    Raises UserError when one is damaged.
    """
    from peft import PeftModel

    for name, path in adapters.items():
        # Without this file PEFT would take a pickled adapter_model.bin in its place.
        if not (path / "adapter_model.safetensors").is_file():
            raise UserError(f"no adapter_model.safetensors in {path}: train it again")
        intact(path)
        options = {"adapter_name": name, "autocast_adapter_dtype": False}
        if isinstance(model, PeftModel):
            model.load_adapter(str(path), **options)
        else:
            model = PeftModel.from_pretrained(model, str(path), **options)
    # PEFT does so itself, but not for a base in 4 bit, whose weights are whole numbers.
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)
    return model


def adapter_of(name: str) -> str | None:
    """The adapter of a run's model, as `load_stages` calls it; the base has none."""
    return None if name == "base" else name


@contextlib.contextmanager
def use_adapter(model: Any, name: str | None) -> Iterator[Any]:
    """The model with one of its adapters, or as its base (`None`), ready for generation."""
    import unsloth

    # For inference with the class that has loaded it.
    getattr(unsloth, getattr(model, "tunebook_loader", "FastModel")).for_inference(model)
    if name is not None:
        model.set_adapter(name)
        yield model
    elif hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            yield model
    else:
        yield model


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write adapter (safetensors) and tokenizer.

    Of several processes all must call it (a sharded model is gathered from all); the first one writes.
    """
    model.save_pretrained(
        folder,
        selected_adapters=["default"],  # without the frozen copy that TRL keeps under the name `ref`
        safe_serialization=True,
        # Unsloth on a GPU adds a padding token to a vocabulary that has none, and PEFT would save all
        # embeddings for that. Those that are trained are in `modules_to_save` and saved anyway.
        save_embedding_layers=False,
        is_main_process=rank() == 0,
    )
    if rank() == 0:
        tokenizer.save_pretrained(folder)


def save_merged(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the base with its adapter merged into it, in 16 bit (safetensors), and the tokenizer.

    `model` comes from `add_lora`: Unsloth ties its save function to that, on either backend.
    """
    model.save_pretrained_merged(str(folder), tokenizer, save_method="merged_16bit")


def load_stages(recipe: Recipe, names: Iterable[str]) -> tuple[Any, Any]:
    """The base model, once, with the adapters of the stages on it; and the tokenizer."""
    model, tokenizer = loading.load_model(recipe)
    adapters = {name: recipe.run_dir / name / "adapter" for name in names if name != "base"}
    return load_adapters(model, adapters), tokenizer

"""What the recipes hand on, held against the signatures of Unsloth's GPU classes and generated configs.

UNSLOTH_ALLOW_CPU=1 python gpu_signatures.py RECIPE...

Prints RESULT and, as JSON, what each recipe gives that is not known there. Nothing is loaded or trained.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import unsloth
from unsloth.models import llama, loader, rl, vision

from tunebook.models import hub, loading
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe

HANDED_ON = {"attn_implementation", "use_safetensors"}
"""No parameters of the loader: they go on to transformers."""


def names(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def generated_configs() -> dict[str, Any]:
    """The configs of the trainers that Unsloth writes for a GPU."""
    rl.patch_trl_disable_gradient_checkpointing()
    for name in ("sft_trainer", "dpo_trainer"):
        rl._patch_trl_rl_trainers(name)
    return {
        "sft": sys.modules["UnslothSFTTrainer"].UnslothSFTConfig,
        "dpo": sys.modules["UnslothDPOTrainer"].UnslothDPOConfig,
    }


class Processor:
    """As much of one as is asked for before a model is used."""

    image_processor = 1
    chat_template = "x"

    def get_vocab(self) -> dict[str, int]:
        return {"<|im_end|>": 1}

    def apply_chat_template(self, *args: Any, **options: Any) -> str:
        return ""


def load_options(recipe: Recipe) -> set[str]:
    """What a recipe gives to the loader."""
    options: dict[str, Any] = {}

    def load(**given: Any) -> tuple[Any, Any]:
        options.update(given)
        return SimpleNamespace(config=SimpleNamespace()), Processor()

    getattr(unsloth, recipe.model.loader).from_pretrained = staticmethod(load)
    hub.refuse_absent = lambda base: None  # the models are not here
    with contextlib.suppress(AttributeError):  # what comes after loading needs a real model
        loading.load_model(recipe)
    return set(options)


def main(*recipes: str) -> None:
    configs = generated_configs()
    known_load = {}
    for kind in ("FastModel", "FastLanguageModel"):
        known_load[kind] = names(getattr(loader, kind).from_pretrained) | HANDED_ON
    known_lora = {
        "FastModel": names(vision.FastBaseModel.get_peft_model),
        "FastLanguageModel": names(llama.FastLlamaModel.get_peft_model),
    }
    unknown = {}
    for name in recipes:
        path, _, kind = name.partition(":")
        recipe = load_recipe(path, overrides={"model.loader": kind or "FastModel"})
        lora = {"random_state", "use_gradient_checkpointing", *recipe.lora}
        unknown[name] = {
            "load": sorted(load_options(recipe) - known_load[recipe.model.loader]),
            "lora": sorted(lora - known_lora[recipe.model.loader]),
        }
        for section, config in configs.items():
            # What the generated config does not name goes on to TRL's, which drops what it has no field for.
            known = names(config.__init__) | names(config.__mro__[1].__init__)
            unknown[name][section] = sorted(set(getattr(recipe, section)) - known)
    generated = ["unsloth_num_chunks" in names(config.__init__) for config in configs.values()]
    print("RESULT " + json.dumps({"device": unsloth.DEVICE_TYPE, "generated": generated, "recipes": unknown}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Models in and out: the embedded model, any folder or hub id, through Unsloth's loaders.

`import unsloth` takes 20 s and more and must come before trl, transformers and peft. It happens inside the
functions here and nowhere at package import.
"""

from __future__ import annotations

from typing import Any

from tunebook.models import hub
from tunebook.models.backend import backend, on_cpu
from tunebook.models.builtin import resolve
from tunebook.models.chat_template import fit_tokenizer, text_tokenizer
from tunebook.models.cpu import attention
from tunebook.recipe.errors import UserError, first_line, shorten
from tunebook.recipe.sections import ModelConfig, Recipe


def load_model(recipe: Recipe) -> tuple[Any, Any]:
    """The recipe's base model and its tokenizer, or its processor for a model that sees images.

    It is `from_pretrained` of Unsloth's class that `model.loader` names, with `model_arguments`.

    Raises UserError when there are no whole safetensors weights, and when the hub does not give them.
    """
    backend()
    import unsloth
    from safetensors import SafetensorError

    config = recipe.model
    attention.register()
    hub.refuse_absent(resolve(config.local_base))
    try:
        model, tokenizer = getattr(unsloth, config.loader).from_pretrained(
            trust_remote_code=False,
            # Else transformers takes pickled weights (pytorch_model.bin) where there are no others.
            use_safetensors=True,
            **model_arguments(recipe),
        )
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"model.base: {config.base} cannot be loaded, its weights must be whole safetensors files "
            f"({first_line(error)})"
        ) from None
    except RuntimeError as error:
        if "Failed to load model" not in str(error):
            raise
        raise UserError(f"model.base: {_not_loaded(config.base, str(error))}") from None
    if hasattr(model.config, "vision_config") and not hasattr(tokenizer, "image_processor"):
        # Unsloth's CPU backend gives a plain tokenizer.
        from transformers import AutoProcessor

        tokenizer = AutoProcessor.from_pretrained(resolve(config.local_base), revision=config.revision)
    fit_tokenizer(tokenizer, config)
    model.tunebook_loader = config.loader  # a model with adapters on it hands the name on
    if config.eos_token:
        _end_turns(model, text_tokenizer(tokenizer).eos_token_id)
    return model, tokenizer


def model_arguments(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe Unsloth's `from_pretrained` is given."""
    config = recipe.model
    return {
        "model_name": resolve(config.local_base),
        "max_seq_length": config.max_seq_length,
        "load_in_4bit": config.load_in_4bit,
        "revision": config.revision,
        "use_gradient_checkpointing": recipe.lora.get("use_gradient_checkpointing", False),
        **_precision_and_attention(config),
    }


def _not_loaded(base: str, text: str) -> str:
    """One line of the paragraphs that Unsloth writes when there is neither a model nor an adapter."""
    reason = text.partition("AutoConfig error:")[2].partition("PeftConfig error:")[0].strip() or text
    mend = "look at the name, log in with `hf auth login` if it is gated, or give a folder"
    if "429" in reason:
        mend = "the hub limits those who have not logged in: set HF_TOKEN, or wait"
    return f"{base} cannot be loaded ({shorten(reason, 160)}); {mend}"


def _precision_and_attention(config: ModelConfig) -> dict[str, Any]:
    """Precision is always given: Unsloth's defaults differ between its GPU and CPU backends."""
    import torch

    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype) if config.dtype else None}
    name = config.attn_implementation
    if name == attention.NAME and not on_cpu():
        name = "eager"
    if name:
        options["attn_implementation"] = name
    return options


def _end_turns(model: Any, token: int) -> None:
    """Stop generation at this token, and still at the model's own (as Qwen's chat models do).

    Merged exports keep both.
    """
    before = model.generation_config.eos_token_id
    others = before if isinstance(before, list) else [before]
    ends = [token] + [other for other in others if other not in (token, None)]
    model.generation_config.eos_token_id = ends
    model.config.eos_token_id = token

"""Models in and out: the embedded model, any folder or hub id, a LoRA adapter on top. Unsloth's `FastModel` throughout.

`import unsloth` takes 20 s and more and must come before trl, transformers and peft, so it happens inside the
functions here and nowhere at package import.
"""

from __future__ import annotations

from typing import Any

from tunebook.models.backend import backend, on_cpu
from tunebook.models.builtin import resolve
from tunebook.models.chat_template import fit_tokenizer, text_tokenizer
from tunebook.models.cpu import attention
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import ModelConfig, Recipe


def load(recipe: Recipe) -> tuple[Any, Any]:
    """The recipe's base model and its tokenizer (of a model that sees images: its processor), through Unsloth's `FastModel`.

    Every precision flag is given: Unsloth's defaults differ between its GPU and CPU backends.
    """
    backend()
    import torch
    from safetensors import SafetensorError
    from unsloth import FastModel

    config: ModelConfig = recipe.model
    checkpointing = recipe.lora.get("use_gradient_checkpointing", False)
    attention.register()
    how = (
        "eager"
        if config.attn_implementation == attention.NAME and not on_cpu()
        else config.attn_implementation
    )
    try:
        model, tokenizer = FastModel.from_pretrained(
            model_name=resolve(config.base),
            max_seq_length=config.max_seq_length,
            dtype=getattr(torch, config.dtype) if config.dtype else None,
            load_in_4bit=config.load_in_4bit,
            revision=config.revision,
            use_gradient_checkpointing=checkpointing,
            trust_remote_code=False,
            use_safetensors=True,  # else transformers takes pickled weights (pytorch_model.bin) where there are no others
            **({"attn_implementation": how} if how else {}),
        )
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"model.base: {config.base} cannot be loaded, its weights must be whole safetensors files ({first_line(error)})"
        ) from None
    if hasattr(model.config, "vision_config") and not hasattr(
        tokenizer, "image_processor"
    ):  # the CPU backend gives a plain tokenizer
        from transformers import AutoProcessor

        tokenizer = AutoProcessor.from_pretrained(resolve(config.base), revision=config.revision)
    fit_tokenizer(tokenizer, config)
    if config.eos_token:
        _end_turns(model, text_tokenizer(tokenizer).eos_token_id)
    return model, tokenizer


def _end_turns(model: Any, token: int) -> None:
    """Stop generation at this token, and still at the model's own (as Qwen's chat models do); merged exports keep both."""
    own = model.generation_config.eos_token_id
    others = own if isinstance(own, list) else [own]
    model.generation_config.eos_token_id = [token, *(other for other in others if other not in (token, None))]
    model.config.eos_token_id = token

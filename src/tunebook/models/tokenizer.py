"""A base model's tokenizer or processor, without loading the model."""

from __future__ import annotations

import re
from typing import Any

from tunebook.models import backend, builtin, chat_template, hub, image_input
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import ModelConfig


def control_tokens(tokenizer: Any) -> list[str]:
    """A tokenizer's own control tokens, such as `<|im_end|>`, longest first."""
    texts = set()
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and token.content.strip():
            texts.add(token.content)
    return sorted(texts, key=len, reverse=True)


def load_tokenizer(config: ModelConfig, images: bool = False) -> Any:
    """The base model's tokenizer (or, for `images`, its processor), without importing Unsloth.

    Raises UserError when there is no such model.
    """
    backend.set_environment()
    base = builtin.resolve(config.local_base)
    hub.refuse_absent(base)  # before what takes half a minute to import
    from transformers import AutoProcessor, AutoTokenizer

    auto = AutoProcessor if images else AutoTokenizer
    try:
        tokenizer = auto.from_pretrained(base, revision=config.revision)
    except (OSError, ValueError) as error:
        reason = (
            f"no model at {config.base!r} ({first_line(error)}); look at the name, "
            "log in with `hf auth login` if it is gated, or give a folder"
        )
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", config.base):
            reason = f"there is no folder {config.base}, and it is no hub id such as user/name"
        raise UserError(f"model.base: {reason}") from None
    chat_template.fit_tokenizer(tokenizer, config)
    return tokenizer


def image_counter(config: ModelConfig) -> image_input.TokenCounter:
    """Counts image tokens as the base model's processor makes them.

    Raises UserError when the model sees no images.
    """
    processor = load_tokenizer(config, images=True)
    if not hasattr(processor, "image_processor"):
        raise UserError(f"the data have images, but {config.base} sees none: choose another model.base")
    return image_input.TokenCounter(processor)

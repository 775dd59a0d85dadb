"""The keys of `lora`, `sft` and `dpo`, read from the installed source of PEFT, transformers and TRL.

Importing them would take seconds and must not happen before Unsloth is imported.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from tunebook.recipe.effects import ROWS
from tunebook.recipe.errors import UserError

_TRAINING_ARGUMENTS = ("transformers", "training_args.py", "TrainingArguments")
_TRL_BASE = ("trl", "trainer/base_config.py", "_BaseConfig")

DATACLASSES = {
    "lora": [("peft", "tuners/lora/config.py", "LoraConfig")],
    "sft": [_TRAINING_ARGUMENTS, _TRL_BASE, ("trl", "trainer/sft_config.py", "SFTConfig")],
    "dpo": [_TRAINING_ARGUMENTS, _TRL_BASE, ("trl", "trainer/dpo_config.py", "DPOConfig")],
}
"""The sections that are handed on: package, file and name of each dataclass whose fields they may use."""

_UNSLOTH_LORA: dict[str, Any] = {
    "use_gradient_checkpointing": bool | Literal["unsloth"],
    "random_state": int,
    "finetune_vision_layers": bool,
    "finetune_language_layers": bool,
    "finetune_attention_modules": bool,
    "finetune_mlp_modules": bool,
}

_EARLY_STOPPING: dict[str, Any] = {"early_stopping_patience": int, "early_stopping_threshold": float}
"""Arguments of transformers' EarlyStoppingCallback, taken out before the config is made."""

_START = (
    "What DPO starts from: `sft` (where the recipe asks for SFT), `base` (where it does not), the folder "
    "or hub id of a LoRA adapter that was trained elsewhere, or the folder of a whole model."
)

_OURS = {"output_dir", "resume_from_checkpoint", "task_type", "local_rank", "hub_token"}
"""Set by the stages themselves, or a secret."""


_LENGTH = "the length is set once, in model.max_seq_length: longer rows are put aside, none is cut"
_VAL = "`val` of a data source sets rows apart for evaluation"
_FOLDER = "a run writes into runs/<run>: choose its name with --run"
_OWN_TEMPLATE = "rows are put through the model's chat template by tunebook itself"

GONE_KEYS = {
    "max_seq_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "cutoff_len": _LENGTH,
    "sequence_len": _LENGTH,
    "max_prompt_length": _LENGTH,
    "max_completion_length": _LENGTH,
    "val_size": _VAL,
    "val_set_size": _VAL,
    "train_on_inputs": "data.train_on names the turns that carry loss",
    "load_in_4bit": "it is model.load_in_4bit",
    "warmup_ratio": "it is warmup_steps now; a value below 1 is a share of all steps",
    "rpo_alpha": "it is loss_type: [sigmoid, sft] with loss_weights: [1.0, alpha] now",
    "evaluation_strategy": "it is eval_strategy now",
    "group_by_length": "it is train_sampling_strategy: group_by_length now",
    "tokenizer": "the tokenizer is the one of model.base",
    "processing_class": "the tokenizer is the one of model.base",
    "dataset_text_field": _OWN_TEMPLATE,
    "formatting_func": _OWN_TEMPLATE,
    "output_dir": _FOLDER,
    "overwrite_output_dir": _FOLDER,
    "logging_dir": _FOLDER,
    "resume_from_checkpoint": "an interrupted run goes on by itself, and --continue trains a finished one on",
}
"""Keys of `sft` and `dpo` in older TRL and in other tools, and what stands for them now.

The nearest spelling would name a key of another meaning. A key that an installed class still has is no
unknown key, so its line is never said.
"""


_CONTROL = (
    "Train the control too: the likelihood of the same chosen answers, without any rejected one, into "
    "`dpo-control`. Evaluation then says what preference has added."
)
_AUTO = "`auto`: the largest power of two that divides gradient_accumulation_steps and fits in memory."


@functools.cache
def trainer_section(section: str) -> type[BaseModel]:
    """A pydantic model with the fields of the classes that a section is handed on to.

    A type that is more than built-in ones is checked by the class itself, later.
    """
    fields: dict[str, Any] = {}
    for key, kind in (_UNSLOTH_LORA if section == "lora" else _EARLY_STOPPING).items():
        fields[key] = (kind, "")
    if section == "dpo":
        fields["start"] = (str, _START)
        fields["control"] = (bool, _CONTROL)
    for package, file, name in DATACLASSES[section]:
        fields.update(_dataclass_fields(package, file, name))
    if ROWS in fields:
        kind, help_text = fields[ROWS]
        fields[ROWS] = (kind | Literal["auto"], f"{help_text} {_AUTO}")
    defined = {}
    for key, (kind, help_text) in fields.items():
        if key not in _OURS:
            defined[key] = (kind, Field(None, description=help_text or None))
    config = ConfigDict(extra="forbid", protected_namespaces=(), title=section)
    return create_model(section, __config__=config, **defined)  # type: ignore[call-overload, no-any-return]


def _dataclass_fields(package: str, file: str, name: str) -> dict[str, tuple[Any, str]]:
    """The type and the help text of each of a dataclass's fields by name, out of its source."""
    # Fields are annotated assignments in the class's body: `learning_rate: float = field(...)`.
    tree = library_source(package, file)
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = (_type(ast.unparse(node.annotation)), _help(node.value))
    return fields


@functools.cache
def library_source(package: str, file: str) -> ast.Module:
    """The parsed source of a file of an installed library. Raises UserError where the library is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package} is not installed: run `uv sync`")
    source = Path(spec.submodule_search_locations[0]) / file
    return ast.parse(source.read_text(encoding="utf-8"))


def _help(default: ast.expr | None) -> str:
    """The text in `field(..., metadata={"help": "..."})`; empty where there is none."""
    if not isinstance(default, ast.Call):
        return ""
    metadata = [keyword.value for keyword in default.keywords if keyword.arg == "metadata"]
    if not metadata or not isinstance(metadata[0], ast.Dict):
        return ""
    for key, value in zip(metadata[0].keys, metadata[0].values, strict=True):
        is_help = isinstance(key, ast.Constant) and key.value == "help"
        if is_help and isinstance(value, ast.Constant) and isinstance(value.value, str):
            return " ".join(value.value.split())
    return ""


def _type(annotation: str) -> Any:
    """The type that an annotation names."""
    # Built-in types and those of `typing`; the sources import no others for a plain value.
    names = dict(vars(typing))
    for kind in (int, float, bool, str, list, dict):
        names[kind.__name__] = kind
    try:
        field_type = eval(annotation, {"__builtins__": {}}, names)  # noqa: S307 - of installed source
    except (NameError, TypeError):
        return Any  # a type of the library's own
    if "list[" in annotation and "list[int]" not in annotation:  # the configs wrap a single value themselves
        return field_type | str
    return field_type

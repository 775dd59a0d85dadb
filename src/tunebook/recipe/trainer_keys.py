"""The keys of `lora`, `sft` and `dpo`, read from the installed source of stock PEFT, transformers and TRL without importing it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

from tunebook.recipe.errors import UserError

# The sections that are handed on: (package, file, class) of every dataclass whose fields they may use.
_ARGS = ("transformers", "training_args.py", "TrainingArguments")


DATACLASSES = {
    "lora": [("peft", "tuners/lora/config.py", "LoraConfig")],
    "sft": [
        _ARGS,
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ],
    "dpo": [
        _ARGS,
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/dpo_config.py", "DPOConfig"),
    ],
}


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


_OURS = {"output_dir", "resume_from_checkpoint", "task_type", "local_rank", "hub_token"}
"""Set by the stages themselves, or a secret."""


@functools.cache
def trainer_section(section: str) -> type[BaseModel]:
    """A pydantic model with the fields of the classes a section is handed on to, read from their source.

    Importing them would take seconds and must not happen before Unsloth is imported. A type that is more than built-in
    ones is not checked here but by the class itself.
    """
    fields: dict[str, Any] = dict(_UNSLOTH_LORA if section == "lora" else _EARLY_STOPPING)
    for package, file, name in DATACLASSES[section]:
        fields |= _dataclass_fields(package, file, name)
    known = {k: (t, None) for k, t in fields.items() if k not in _OURS}
    config = ConfigDict(extra="forbid", protected_namespaces=(), title=section)
    return create_model(section, __config__=config, **known)  # type: ignore[call-overload, no-any-return]


def _dataclass_fields(package: str, file: str, name: str) -> dict[str, Any]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package} is not installed: run `uv sync`")
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    return {
        n.target.id: _type(ast.unparse(n.annotation))
        for n in body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }


def _type(annotation: str) -> Any:
    try:
        names = vars(typing) | {t.__name__: t for t in (int, float, bool, str, list, dict)}
        kind = eval(annotation, {"__builtins__": {}}, names)  # noqa: S307 - of installed source, without builtins
    except (NameError, TypeError):
        return Any  # a type of the library's own
    return kind | str if "list[" in annotation else kind  # the configs wrap a single value themselves

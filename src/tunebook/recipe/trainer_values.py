"""Values of `lora`, `sft` and `dpo` that a library refuses late, or takes and does something else with.

They are answered when the recipe is read, before seconds go into imports and minutes into a model.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from typing import Any

from tunebook.recipe.effects import ROWS, STEPS, TRAINERS
from tunebook.recipe.errors import UserError, did_you_mean, shorten
from tunebook.recipe.idle import NO_PARAMETERS
from tunebook.recipe.sections import Recipe
from tunebook.recipe.trackers import check_installed, check_trackers
from tunebook.recipe.trainer_keys import library_source

BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""`lora.init_lora_weights` by which the weights of the base are changed too."""

SCHEDULER_OWN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
"""What transformers gives each schedule itself."""

MOST_ROWS = 2**16
"""More rows at a time than anybody's memory holds."""

LOG_LEVELS = ("passive", "detail", "debug", "info", "warning", "error", "critical")
"""What transformers looks up in the first step, without a word of its own for another one."""

MOST_PROCESSES = 256
"""More processes for the rows than anybody's cores."""

_TOO = "in its place, then evaluation and export go by it too"

NOT_HERE = {
    "chat_template_path": f"set model.chat_template {_TOO}",
    "eos_token": f"set model.eos_token {_TOO}",
    "dataset_kwargs": "leave it out; rows go through the model's chat template as the section data says",
}
"""What TRL would change for the training alone, though the model is asked elsewhere too."""

MAPPINGS = ("gradient_checkpointing_kwargs", "lr_scheduler_kwargs", "model_init_kwargs")
"""Keys of a trainer that hold a mapping and never the name of a file."""

_FIRST = ("sigmoid", "nll")
"""The plain losses, named first in a message."""


def check_trainer_values(recipe: Recipe) -> None:
    """Put values into the form that the libraries take, and refuse those that lead to no training.

    Raises UserError in one line that says what to set.
    """
    _check_lora(recipe.lora)
    check_installed("track", list(recipe.track))
    for section in TRAINERS:
        values = getattr(recipe, section)
        for key, mend in NOT_HERE.items():
            if values.get(key):
                raise UserError(f"{section}.{key}: {mend}")
        _check_mappings(section, values)
        _check_numbers(section, values)
        _check_length(section, values, recipe.model.max_seq_length)
        check_trackers(section, values)
        for key in ("log_level", "log_level_replica"):
            if values.get(key, "passive") not in LOG_LEVELS:
                levels = ", ".join(LOG_LEVELS)
                raise UserError(f"{section}.{key}: should be one of {levels} (it is {shorten(values[key])})")
        _check_loss(section, values)
        _check_schedule(section, values)
        _check_best_metric(section, values)
    if recipe.sft.get("assistant_only_loss"):
        raise UserError(
            "sft.assistant_only_loss: set data.train_on=all in its place, then every assistant turn of a "
            "conversation carries loss"
        )
    beta = recipe.dpo.get("beta")
    if beta is not None and not beta > 0:
        raise UserError(
            f"dpo.beta: should be above 0, for example 0.1 (it is {beta}); at 0 nothing is preferred"
        )


def _check_lora(lora: dict[str, Any]) -> None:
    alpha = lora.get("lora_alpha", 1)
    if not alpha:
        raise UserError(
            f"lora.lora_alpha: should be above 0, for example 16 (it is {alpha}); at 0 nothing is learnt"
        )
    dropout = lora.get("lora_dropout", 0.0)
    if not 0 <= dropout < 1:
        raise UserError(f"lora.lora_dropout: should be a share from 0 to below 1 (it is {dropout})")
    if "r" in lora and not (lora["r"] or 0) > 0:
        raise UserError(f"lora.r: should be 1 or more, for example 16 (it is {lora['r']})")
    # PEFT would take each letter of a text for a name.
    for key in ("modules_to_save", "target_parameters"):
        if isinstance(lora.get(key), str):
            lora[key] = [name for name in re.split(r"[\s,]+", lora[key]) if name] or None
    if lora.get("trainable_token_indices") == []:
        raise UserError("lora.trainable_token_indices: names no token; leave it out to train none")
    # LLaMA-Factory's form; a regular expression may hold a comma too, but not between names alone.
    targets = lora.get("target_modules")
    if isinstance(targets, str) and re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)+", targets.strip()):
        lora["target_modules"] = re.split(r"\s*,\s*", targets.strip())
    elif targets == "all":
        lora["target_modules"] = "all-linear"
    elif isinstance(targets, str):
        # What is no list and no word of PEFT's is a regular expression over the names of layers.
        try:
            re.compile(targets)
        except re.error as error:
            raise UserError(
                f"lora.target_modules: {shorten(targets)} is no regular expression ({error}); "
                "a list of layers is written [q_proj, v_proj]"
            ) from None
    if targets in ("", []):
        raise UserError("lora.target_modules: names no layer; leave it out for all linear ones")
    # All models are compared on one base: pissa moved its log-probabilities by up to 4.7 nats.
    init = lora.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING):
        raise UserError(
            f"lora.init_lora_weights: {init} changes the base model, and `evaluate` would compare with "
            "another one: leave it out, or set gaussian or orthogonal"
        )
    if lora.get("layer_replication"):
        raise UserError(
            "lora.layer_replication: repeats layers of the base model, and `evaluate` would compare with "
            "another one: leave it out, and give model.base a model that was made so"
        )


def _check_mappings(section: str, values: dict[str, Any]) -> None:
    """A mapping may be written as JSON too, for which only some keys have a reader; other text is none."""
    for key in MAPPINGS:
        text = values.get(key)
        if not isinstance(text, str):
            continue
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = None
        if not isinstance(values[key], dict):
            raise UserError(
                f"{section}.{key}: should be a mapping of keys and values (it is {shorten(text)})"
            )


def _check_numbers(section: str, values: dict[str, Any]) -> None:
    # A million workers are as many processes.
    for key in ("dataloader_num_workers", "dataset_num_proc"):
        value = values.get(key)
        if isinstance(value, int) and value > MOST_PROCESSES:
            raise UserError(f"{section}.{key}: should be at most {MOST_PROCESSES} (it is {value})")
    for key in (ROWS, STEPS, "per_device_eval_batch_size"):
        value = values.get(key)
        if isinstance(value, int) and value < 1:
            raise UserError(f"{section}.{key}: should be 1 or more (it is {value})")
        # accelerate fills up a batch of 10**20 rows until the memory is full.
        if isinstance(value, int) and value > MOST_ROWS:
            raise UserError(f"{section}.{key}: should be at most {MOST_ROWS} (it is {value})")
    # Half an epoch is fine, and `max_steps` makes the epochs count for nothing.
    epochs = values.get("num_train_epochs")
    has_steps = (values.get("max_steps") or 0) > 0
    if epochs is not None and not epochs > 0 and not has_steps:
        raise UserError(
            f"{section}.num_train_epochs: should be above 0 (it is {epochs}), or set {section}.max_steps"
        )


def _check_length(section: str, values: dict[str, Any], most: int) -> None:
    """A length below the model's would cut rows, the end of the turn with them; padding stays below it."""
    length = values.get("max_length")
    if length is not None and length < most:
        raise UserError(
            f"{section}.max_length: {length} would cut rows: set model.max_seq_length={length} in its place, "
            "then longer rows are put aside and said"
        )
    multiple = values.get("pad_to_multiple_of")
    if multiple is not None and not 0 < multiple <= most:
        raise UserError(
            f"{section}.pad_to_multiple_of: should be from 1 to model.max_seq_length, {most}, for example 64 "
            f"(it is {multiple}): each row is filled up to so many tokens"
        )


def _check_loss(section: str, values: dict[str, Any]) -> None:
    named = values.get("loss_type")
    if named is None:
        return
    # TRL itself looks at a name of DPO only in the first step.
    losses = loss_types(section)
    for name in [named] if isinstance(named, str) else named:
        if losses and name not in losses:
            raise UserError(f"{section}.loss_type: no loss {shorten(name)}; there are {', '.join(losses)}")


@functools.cache
def loss_types(section: str) -> tuple[str, ...]:
    """The losses that TRL's trainer knows: what its source compares `loss_type` with.

    Empty where the source tells none: then TRL itself has to answer.
    """
    names = set()
    for file in (f"{section}_trainer.py", f"{section}_config.py"):
        # `elif loss_type == "hinge":` names one, `loss_type not in ("nll", "dft")` two.
        for node in ast.walk(library_source("trl", f"trainer/{file}")):
            if isinstance(node, ast.Compare) and ast.unparse(node.left).rpartition(".")[2] == "loss_type":
                for part in ast.walk(node.comparators[0]):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        names.add(part.value)
    first = [name for name in _FIRST if name in names]
    return (*first, *sorted(names.difference(first)))


def _check_best_metric(section: str, values: dict[str, Any]) -> None:
    """What the best checkpoint is chosen by must be measured: transformers looks only then."""
    metric = values.get("metric_for_best_model")
    measured = eval_metrics(section)
    if metric and measured and metric.removeprefix("eval_") not in measured:
        raise UserError(
            f"{section}.metric_for_best_model: no metric {shorten(metric)}{did_you_mean(metric, measured)}; "
            f"evaluations measure {', '.join(measured)}"
        )


@functools.cache
def eval_metrics(section: str) -> tuple[str, ...]:
    """What an evaluation during training measures: the loss, and what TRL's trainer notes beside it."""
    names = {"loss"}
    for node in ast.walk(library_source("trl", f"trainer/{section}_trainer.py")):
        # `self._metrics[mode]["entropy"].append(...)`
        if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Constant):
            continue
        if ast.unparse(node.value) == "self._metrics[mode]":
            names.add(str(node.slice.value))
    return ("loss", *sorted(names - {"loss"}))


def _check_schedule(section: str, values: dict[str, Any]) -> None:
    """What a schedule is given beside the rate must be its own: transformers looks before the first step."""
    schedule = str(values.get("lr_scheduler_type", "linear"))
    known = schedule_parameters().get(schedule)
    parameters = values.get("lr_scheduler_kwargs") or {}
    if known is None or not isinstance(parameters, dict) or schedule in NO_PARAMETERS:
        return
    key = f"{section}.lr_scheduler_kwargs"
    for name in parameters:
        if name not in known:
            names = ", ".join(known) or "none"
            raise UserError(f"{key}: {schedule} has no parameter {shorten(str(name))}; it takes {names}")
    for name, has_default in known.items():
        if not has_default and name not in parameters:
            raise UserError(f"{key}: {schedule} needs {name}, for example {{{name}: 10}}")
    if "min_lr" in known and parameters.get("min_lr") is None and parameters.get("min_lr_rate") is None:
        raise UserError(f"{key}: {schedule} needs min_lr or min_lr_rate, for example {{min_lr_rate: 0.1}}")


@functools.cache
def schedule_parameters() -> dict[str, dict[str, bool]]:
    """What `lr_scheduler_kwargs` may hold, by schedule: each name, and whether it has a default.

    Schedules that pass on whatever they are given are left out.
    """
    # 1) the names of the schedules: `COSINE = "cosine"`
    schedules = {}
    for node in ast.walk(library_source("transformers", "trainer_utils.py")):
        if isinstance(node, ast.ClassDef) and node.name == "SchedulerType":
            for line in node.body:
                if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
                    schedules[f"SchedulerType.{ast.unparse(line.targets[0])}"] = str(line.value.value)
    # 2) the function of each, and what the functions take: `{SchedulerType.COSINE: get_cosine_schedule, ...}`
    tree = library_source("transformers", "optimization.py")
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    parameters = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            schedule = schedules.get(ast.unparse(key)) if key else None
            arguments = functions.get(ast.unparse(value))
            if schedule and arguments and arguments.kwarg is None:
                first_default = len(arguments.args) - len(arguments.defaults)
                names = {}
                for place, argument in enumerate(arguments.args):
                    if argument.arg not in SCHEDULER_OWN:
                        names[argument.arg] = place >= first_default
                parameters[schedule] = names
    return parameters

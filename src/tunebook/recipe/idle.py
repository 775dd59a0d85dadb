"""Settings that do nothing beside the others of their recipe, as far as the installed sources say so."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from typing import Any

from tunebook.recipe.errors import say_once
from tunebook.recipe.layers import DEFAULTS, file_label
from tunebook.recipe.sections import Recipe
from tunebook.recipe.trainer_keys import library_source

NEEDS: dict[str, tuple[str, Any, tuple[Any, ...]]] = {
    # Of transformers: its `training_args.py`, `trainer.py` and `trainer_optimizer.py`.
    "eval_steps": ("eval_strategy", "no", ("steps",)),
    "eval_delay": ("eval_strategy", "no", ("steps", "epoch")),
    "eval_accumulation_steps": ("eval_strategy", "no", ("steps", "epoch")),
    "save_steps": ("save_strategy", "steps", ("steps",)),
    "save_total_limit": ("save_strategy", "steps", ("steps", "epoch", "best")),
    "gradient_checkpointing_kwargs": ("gradient_checkpointing", True, (True,)),
    "length_column_name": ("train_sampling_strategy", "random", ("group_by_length",)),
    "liger_kernel_config": ("use_liger_kernel", False, (True,)),
    "hub_model_id": ("push_to_hub", False, (True,)),
    "hub_strategy": ("push_to_hub", False, (True,)),
    "hub_private_repo": ("push_to_hub", False, (True,)),
    "hub_revision": ("push_to_hub", False, (True,)),
    # Of TRL: its configurations and trainers.
    "eval_packing": ("eval_strategy", "no", ("steps", "epoch")),
    "f_alpha_divergence_coef": ("f_divergence_type", "reverse_kl", ("alpha_divergence",)),
    "ref_model_mixup_alpha": ("sync_ref_model", False, (True,)),
    "ref_model_sync_steps": ("sync_ref_model", False, (True,)),
    "precompute_ref_batch_size": ("precompute_ref_log_probs", False, (True,)),
}
"""What acts only beside another setting: that one, its value where none is set, and those it must have."""

NEVER = {
    "do_train": "`tunebook sft` and `tunebook dpo` always train",
    "do_predict": "`tunebook evaluate` is what answers",
    "dataset_text_field": "rows are put through the model's chat template",
    "model_init_kwargs": "the model is loaded by the section model",
    "trust_remote_code": "the model is loaded by the section model, and no code comes with it",
    "truncation_mode": "nothing is cut: longer rows are put aside",
}
"""What the trainers take and this project, or the trainer itself, never looks at."""

NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
NO_PARAMETERS = ("constant", "constant_with_warmup")
"""Schedules that transformers' `get_scheduler` gives no warmup, and no `lr_scheduler_kwargs`."""

NO_ADAM = ("sgd", "adagrad", "adafactor", "rmsprop")
"""Optimisers that are given none of `adam_beta1`, `adam_beta2`, `adam_epsilon`."""

NO_ARGUMENTS = ("adamw_torch", "adamw_torch_fused", "adafactor")
"""Optimisers that are given none of `optim_args`."""

OF_LOSSES = ("label_smoothing", "discopop_tau", "beta")
"""Settings of DPO that some of its losses do not look at."""


def warn_of_idle(recipe: Recipe, origins: dict[str, str]) -> None:
    """Say once, in one line, which settings that somebody has written do nothing.

    Args:
        origins: The file and line of each value: what a family default says was asked for by nobody.
    """
    family = file_label(DEFAULTS)
    written = set()
    for key, origin in origins.items():
        if not origin.startswith(family):
            # `sft.lr_scheduler_kwargs.min_lr` is written where `sft.lr_scheduler_kwargs` is.
            section, _, rest = key.partition(".")
            written.add((section, rest.partition(".")[0]))
    idle = []
    for section, key, reason in _all_idle(recipe):
        if key == "num_train_epochs":
            # A short trial with --set max_steps=5 knows that the epochs of the recipe's file do not count.
            epochs, steps = origins.get(f"{section}.{key}", ""), origins.get(f"{section}.max_steps", "")
            if epochs.rpartition(":")[0] != steps.rpartition(":")[0]:
                continue
        if (section, key) in written:
            idle.append(f"{section}.{key} ({reason})")
    if idle:
        # Not on stdout, where `recipe show` writes YAML.
        say_once(f"Warning: these settings do nothing: {'; '.join(idle)}", to_stderr=True)


def _all_idle(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Section, key and reason of each setting that does nothing."""
    for section in ("sft", "dpo"):
        values = getattr(recipe, section)
        # `track` stands for a section's own `report_to`.
        trackers = {"report_to": recipe.track} if recipe.track else {}
        for key, reason in idle_arguments(section, {**trackers, **values}).items():
            # `false`, 0 and null ask for nothing to be done.
            if values.get(key):
                yield section, key, reason
    only_dpo = "dpo" in recipe.stages and "sft" not in recipe.stages
    if only_dpo and recipe.lora.get("lora_dropout") and recipe.dpo.get("disable_dropout", True):
        yield "lora", "lora_dropout", "DPO switches dropout off: dpo.disable_dropout"
    if not recipe.evaluate.samples:
        yield "evaluate", "temperature", "needs evaluate.samples; the one answer that counts is greedy"
    if set(recipe.pairs.methods) == {"dataset"}:
        for key in (
            "prompts",
            "samples",
            "temperature",
            "top_p",
            "top_k",
            "max_new_tokens",
            "batch_size",
            "server",
        ):
            yield "pairs", key, "no answers are asked for: pairs.methods is [dataset]"
    if "on_policy" not in recipe.pairs.methods:
        for key in ("per_prompt", "reference_chosen", "rejected", "first_pit"):
            yield "pairs", key, "needs on_policy in pairs.methods"
    if "injected_error" not in recipe.pairs.methods:
        yield "pairs", "strategies", "needs injected_error in pairs.methods"
    if "dataset" not in recipe.pairs.methods:
        for key in ("columns", "rows", "dataset_split"):
            yield "pairs", key, "needs pairs.dataset"
        if recipe.check is None and recipe.judge is None:
            yield "pairs", "min_margin", "needs pairs.dataset, or a check or a judge that scores samples"


def idle_arguments(section: str, values: dict[str, Any]) -> dict[str, str]:
    """Of a trainer's arguments, those that do nothing beside the others: the reason of each by key.

    Some of them may not be set at all.
    """
    idle = dict(NEVER)
    # 1) what needs another setting
    for key, (other, default, right) in NEEDS.items():
        value = values.get(other, default)
        if value not in right:
            idle[key] = f"needs {other} {' or '.join(map(_text, right))}, it is {_text(value)}"
    if values.get("eval_on_start"):
        idle.pop("eval_accumulation_steps", None)
        idle.pop("eval_packing", None)
    if not values.get("packing") and not values.get("eval_packing"):
        idle["packing_strategy"] = "needs packing true"
    if (values.get("max_steps") or 0) > 0:
        idle["num_train_epochs"] = f"max_steps {values['max_steps']} decides how long it trains"
    # 2) the schedule and the optimiser
    schedule = str(values.get("lr_scheduler_type", "linear"))
    if schedule in NO_WARMUP:
        idle["warmup_steps"] = f"the schedule {schedule} has no warmup"
        if schedule == "constant":
            idle["warmup_steps"] += ": constant_with_warmup has one"
    if schedule in NO_PARAMETERS:
        idle["lr_scheduler_kwargs"] = f"the schedule {schedule} takes none"
    optimizer = str(values.get("optim"))  # where none is set, Unsloth chooses
    if optimizer in NO_ADAM:
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            idle[key] = f"the optimiser {optimizer} has none"
    if optimizer in NO_ARGUMENTS:
        idle["optim_args"] = f"the optimiser {optimizer} takes none"
    # 3) what is looked at for the best checkpoint alone
    looks_for_best = (
        values.get("load_best_model_at_end")
        or values.get("save_strategy") == "best"
        or schedule in ("reduce_lr_on_plateau", "greedy")
    )
    if not looks_for_best:
        for key in ("metric_for_best_model", "greater_is_better"):
            idle[key] = "needs load_best_model_at_end true"
    if str(values.get("report_to", "none")) in ("none", "[]"):
        for key in ("run_name", "project", "trackio_space_id"):
            idle[key] = "no tracker is named: report_to"
    # 4) the loss
    if section == "sft" and values.get("loss_type") == "dft":
        idle["label_smoothing_factor"] = "the loss dft ignores it"
    if section == "dpo":
        idle |= _idle_of_losses(values)
    return idle


def _idle_of_losses(values: dict[str, Any]) -> dict[str, str]:
    idle = {
        "label_smoothing_factor": "DPO has losses of its own; robust and exo_pair have label_smoothing",
        "padding_free": "TRL's DPO trainer has switched it off",
    }
    named = values.get("loss_type") or ["sigmoid"]
    losses = [named] if isinstance(named, str) else list(named)
    for key in OF_LOSSES:
        users = losses_with(key)
        if users and not set(losses) & set(users):
            ignoring = f"the loss {losses[0]} ignores it"
            if len(losses) > 1:
                ignoring = f"the losses {' and '.join(losses)} ignore it"
            idle[key] = ignoring if key == "beta" else f"{ignoring}: {', '.join(users)} would not"
    return idle


@functools.cache
def losses_with(name: str) -> tuple[str, ...]:
    """The losses of DPO in whose branch of TRL's source a setting is read; empty where it tells none."""
    names = set()
    for node in ast.walk(library_source("trl", "trainer/dpo_trainer.py")):
        # `elif loss_type == "robust": ... self.label_smoothing ...`
        if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
            continue
        loss = node.test.comparators[0]
        if ast.unparse(node.test.left) != "loss_type" or not isinstance(loss, ast.Constant):
            continue
        for part in node.body:
            for inner in ast.walk(part):
                if isinstance(inner, ast.Attribute) and inner.attr == name:
                    names.add(str(loss.value))
    return tuple(sorted(names))


def _text(value: Any) -> str:
    """A value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)

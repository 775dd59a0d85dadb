"""Settings that do nothing beside the others are said in one line when the recipe is read."""

from __future__ import annotations

from typing import Any

import pytest

from tunebook.recipe.errors import UserError, say_once
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.trainer_values import schedule_parameters


def warning(capsys, path: Any = None, **overrides: Any) -> str:
    """What is said on stderr when a recipe is read; the names have `__` for the dot."""
    say_once.cache_clear()
    load_recipe(path, overrides={key.replace("__", "."): value for key, value in overrides.items()})
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") <= 1
    return output.err


IDLE = [
    (
        {"dpo__label_smoothing": 0.1},
        "sigmoid and sft ignore it: aot, aot_unpaired, exo_pair, robust would not",
    ),
    ({"dpo__label_smoothing": 0.1, "dpo__loss_type": "ipo"}, "the loss ipo ignores it"),
    ({"dpo__discopop_tau": 0.1}, "ignore it: discopop would not"),
    ({"dpo__beta": 0.3, "dpo__loss_type": "sft", "dpo__loss_weights": [1]}, "the loss sft ignores it"),
    ({"sft__eval_steps": 5, "sft__eval_strategy": "epoch"}, "needs eval_strategy steps, it is epoch"),
    ({"dpo__eval_delay": 5, "dpo__eval_strategy": "no"}, "needs eval_strategy steps or epoch, it is no"),
    ({"sft__save_steps": 5, "sft__save_strategy": "no"}, "needs save_strategy steps, it is no"),
    (
        {"sft__gradient_checkpointing_kwargs": {"use_reentrant": True}, "sft__gradient_checkpointing": False},
        "needs gradient_checkpointing true, it is false",
    ),
    (
        {"sft__lr_scheduler_kwargs": {"min_lr": 1}, "sft__lr_scheduler_type": "constant_with_warmup"},
        "the schedule constant_with_warmup takes none",
    ),
    ({"sft__warmup_steps": 5, "sft__lr_scheduler_type": "constant"}, "the schedule constant has no warmup"),
    ({"sft__num_train_epochs": 2, "sft__max_steps": 5}, "max_steps 5 decides how long it trains"),
    ({"sft__packing_strategy": "bfd"}, "needs packing true"),
    ({"sft__truncation_mode": "keep_start"}, "nothing is cut"),
    ({"sft__dataset_text_field": "text"}, "rows are put through the model's chat template"),
    ({"dpo__padding_free": True}, "TRL's DPO trainer has switched it off"),
    ({"dpo__ref_model_sync_steps": 5}, "needs sync_ref_model true, it is false"),
    ({"dpo__f_alpha_divergence_coef": 0.3}, "needs f_divergence_type alpha_divergence, it is reverse_kl"),
    ({"sft__adam_beta2": 0.9, "sft__optim": "sgd"}, "the optimiser sgd has none"),
    ({"sft__optim_args": "a=1"}, "the optimiser adamw_torch_fused takes none"),
    ({"sft__metric_for_best_model": "loss"}, "needs load_best_model_at_end true"),
    ({"sft__run_name": "first"}, "no tracker is named: report_to"),
    ({"sft__hub_model_id": "a/b"}, "needs push_to_hub true, it is false"),
    ({"dpo__label_smoothing_factor": 0.1}, "DPO has losses of its own"),
    ({"sft__label_smoothing_factor": 0.1, "sft__loss_type": "dft"}, "the loss dft ignores it"),
    ({"evaluate__temperature": 0.5}, "needs evaluate.samples"),
    ({"pairs__strategies": ["process_error"]}, "needs injected_error in pairs.methods"),
    ({"pairs__min_margin": 1}, "needs pairs.dataset"),
]


@pytest.mark.parametrize(("settings", "reason"), IDLE, ids=[next(iter(settings)) for settings, _ in IDLE])
def test_a_setting_that_does_nothing_is_said_with_the_reason(capsys, settings, reason):
    said = warning(capsys, **settings)
    key = next(iter(settings)).replace("__", ".")
    assert said.startswith("Warning: these settings do nothing: ")
    assert f"{key} (" in said and reason in said


ACTIVE = [
    {"dpo__label_smoothing": 0.1, "dpo__loss_type": "robust"},
    {"dpo__label_smoothing": 0.1, "dpo__loss_type": ["sigmoid", "exo_pair"]},
    {"dpo__label_smoothing": 0.0},
    {"sft__eval_steps": 5},
    {"sft__gradient_checkpointing_kwargs": {"use_reentrant": True}, "sft__gradient_checkpointing": True},
    {"sft__lr_scheduler_kwargs": {"num_cycles": 1}},
    {"sft__num_train_epochs": 2},
    {"sft__num_train_epochs": 2, "sft__max_steps": -1},
    {"sft__packing_strategy": "bfd", "sft__packing": True},
    {"evaluate__temperature": 0.5, "evaluate__samples": 2},
    {"sft__optim_args": "rank=4", "sft__optim": "galore_adamw"},
    {"sft__label_smoothing_factor": 0.1},
    {"sft__do_train": False},
]


@pytest.mark.parametrize("settings", ACTIVE, ids=[" ".join(settings) for settings in ACTIVE])
def test_a_setting_that_does_something_is_not(capsys, settings):
    assert warning(capsys, **settings) == ""


def test_no_shipped_recipe_says_anything_idle(capsys):
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert warning(capsys, str(path)) == "", path


def test_what_a_family_default_says_was_asked_for_by_nobody(capsys, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("extends: smollm2\ndata: {sources: [{path: a.jsonl}]}\nsft:\n")
    # eval_steps and warmup_steps stand in the family default.
    idle_of_family = {"sft__eval_strategy": "no", "sft__lr_scheduler_type": "constant"}
    assert warning(capsys, str(path), **idle_of_family) == ""
    assert "sft.warmup_steps" in warning(capsys, str(path), **idle_of_family, sft__warmup_steps=3)


def test_dropout_without_sft_is_switched_off_by_dpo(capsys, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "extends: smollm2\nlora: {lora_dropout: 0.1}\npairs: {dataset: pairs.jsonl}\ndpo: {start: base}\n"
    )
    assert "lora.lora_dropout (DPO switches dropout off" in warning(capsys, str(path))
    assert warning(capsys, str(path), dpo__disable_dropout=False) == ""


def test_epochs_beside_steps_are_said_where_both_are_written_in_one_place(capsys, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("extends: smollm2-math\nsft: {num_train_epochs: 2}\n")
    assert warning(capsys, str(path), sft__max_steps=5) == ""  # a short trial
    path.write_text("extends: smollm2-math\nsft:\n  num_train_epochs: 2\n  max_steps: 5\n")
    assert "sft.num_train_epochs (max_steps 5 decides" in warning(capsys, str(path))


def test_it_is_said_once(capsys):
    assert warning(capsys, sft__run_name="first") != ""
    load_recipe(overrides={"sft.run_name": "first"})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("schedule", "given", "line"),
    [
        ("cosine", {"min_lr": 1e-5}, "cosine has no parameter min_lr; it takes num_cycles"),
        ("linear", {"num_cycles": 2}, "linear has no parameter num_cycles; it takes none"),
        ("warmup_stable_decay", {}, "warmup_stable_decay needs num_decay_steps, for example"),
        ("cosine_with_min_lr", {"num_cycles": 0.5}, "needs min_lr or min_lr_rate"),
    ],
)
def test_parameters_of_a_schedule_are_looked_at_before_a_model_is_loaded(schedule, given, line):
    keys = {"sft.lr_scheduler_type": schedule, "sft.lr_scheduler_kwargs": given}
    with pytest.raises(UserError, match=r"sft\.lr_scheduler_kwargs: ") as refused:
        load_recipe(overrides=keys)
    assert line in str(refused.value)


def test_parameters_of_schedules_are_read_from_the_installed_source():
    known = schedule_parameters()
    assert known["cosine_with_restarts"] == {"num_cycles": True}
    assert known["warmup_stable_decay"]["num_decay_steps"] is False
    assert "reduce_lr_on_plateau" not in known  # it passes on whatever it is given
    wsd = {"sft.lr_scheduler_type": "warmup_stable_decay"}
    wsd["sft.lr_scheduler_kwargs"] = {"num_decay_steps": 3, "min_lr_ratio": 0.1}
    assert load_recipe(overrides=wsd).sft["lr_scheduler_kwargs"]["num_decay_steps"] == 3


def test_what_acts_through_a_check_or_a_tracker_is_not_said_to_do_nothing(capsys):
    assert warning(capsys, pairs__min_margin=0.2, check="json") == ""
    assert warning(capsys, sft__run_name="first", track="tensorboard") == ""

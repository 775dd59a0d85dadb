"""Everyday changes: no work is thrown away, nothing is cut, a late refusal is one line early on."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunebook import cli
from tunebook.data import prepare
from tunebook.models.adapters import check_layers, check_rank, check_targets
from tunebook.recipe import trackers
from tunebook.recipe.effects import differences, of_the_weights
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import switch
from tunebook.recipe.parameters import check_cells
from tunebook.runs.files import read_json
from tunebook.runs.stage import Stage

SFT = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "logging_steps": 10, "save_steps": 5}


def stage(data: str = "abc", **changes: Any) -> Stage:
    return Stage(load_recipe(), "sft", {"seed": 1, "sft": SFT | changes}, {"data": data})


def interrupted(**changes: Any) -> Path:
    """An SFT that has ended at checkpoint 10."""
    begun = stage(**changes)
    with pytest.raises(KeyboardInterrupt), begun.open() as folder:
        for step in (5, 10):
            (folder / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        raise KeyboardInterrupt
    return begun.partial / "checkpoints" / "checkpoint-10"


@pytest.mark.parametrize(
    "changes",
    [
        {"logging_steps": 5},
        {"save_steps": 2, "save_total_limit": 1, "eval_steps": 3},
        {"report_to": "wandb"},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True, "dataloader_num_workers": 2},
    ],
)
def test_what_only_watches_or_splits_goes_on_from_the_checkpoint(changes, capsys):
    checkpoint = interrupted()
    with stage(**changes).open():
        assert checkpoint.exists()
    assert ": goes on from checkpoint-10" in capsys.readouterr().out


def test_going_on_is_said_with_both_values_and_recorded_for_the_next_time(capsys):
    interrupted()
    changed = stage(logging_steps=5)
    with pytest.raises(KeyboardInterrupt), changed.open():
        raise KeyboardInterrupt
    assert "sft.logging_steps 10 -> 5: goes on from checkpoint-10" in capsys.readouterr().out
    assert read_json(changed.partial / "started.json")["settings"]["sft"]["logging_steps"] == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 2e-3},
        {"per_device_train_batch_size": 2},
        {"dataloader_drop_last": True},
        {"load_best_model_at_end": True},
        {"data": "other rows"},
    ],
)
def test_what_decides_the_weights_is_asked_about_and_the_checkpoints_stay(changes):
    checkpoint = interrupted()
    line = r"up to checkpoint-10, .* --fresh .* --run NAME"
    with pytest.raises(UserError, match=line) as refused, stage(**changes).open():
        pass
    assert checkpoint.exists()
    if "learning_rate" in changes:
        assert "sft.learning_rate 0.001 -> 0.002" in str(refused.value)
    if "data" in changes:
        assert "what it builds on has changed" in str(refused.value)


def test_fresh_keeps_the_unfinished_run_until_the_new_one_is_whole(capsys):
    interrupted()
    again = stage(learning_rate=2e-3)
    before = again.dir.with_name(".sft.before")
    with again.open(resume=False) as folder:
        assert not (folder / "checkpoints").exists()
        assert (before / "checkpoints" / "checkpoint-10").exists()
    assert again.done and not before.exists()
    assert f"lies in {before} until the new one is whole" in capsys.readouterr().out


def test_checkpoints_of_a_version_that_recorded_no_settings_are_not_thrown_away():
    checkpoint = interrupted()
    (stage().partial / "started.json").write_text('{"key": "of long ago"}')
    with pytest.raises(UserError, match=r"other settings.*--fresh"), stage().open():
        pass
    assert checkpoint.exists()


def test_a_finished_stage_is_up_to_date_whatever_watched_it(capsys):
    first = stage()
    with first.open():
        pass
    recorded = (first.dir / "stage.json").stat().st_mtime_ns
    assert stage(logging_steps=5).skip(force=False)
    assert (
        "Its weights do not depend on what has changed: sft.logging_steps 10 -> 5" in capsys.readouterr().out
    )
    assert (first.dir / "stage.json").stat().st_mtime_ns == recorded
    assert not stage(learning_rate=1).done and not stage(data="other").done


def test_evaluations_decide_the_weights_where_the_best_checkpoint_or_the_schedule_rests_on_them():
    for deciding in (
        {"load_best_model_at_end": True},
        {"early_stopping_patience": 2},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
    ):
        often = of_the_weights({"sft": {"eval_steps": 2, "save_total_limit": 1, **deciding}})
        seldom = of_the_weights({"sft": {"eval_steps": 5, "save_total_limit": 2, **deciding}})
        assert often != seldom
        assert seldom == of_the_weights({"sft": {"eval_steps": 5, "save_total_limit": 3, **deciding}})


def test_the_product_of_batch_and_accumulation_counts_with_the_defaults_of_transformers():
    rows = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert of_the_weights({"dpo": {}}) == of_the_weights({"dpo": rows})
    assert of_the_weights({"dpo": {}}) != of_the_weights({"dpo": {"gradient_accumulation_steps": 2}})
    # A stage that does not train has no such settings, and each of its own counts.
    assert of_the_weights({"logging_steps": 1}) == {"logging_steps": 1}


def test_differences_name_what_was_added_and_what_is_gone():
    before, now = {"sft": {"a": 1, "b": 2}, "seed": 1}, {"sft": {"a": 1, "c": [3]}, "seed": 1}
    assert differences(before, now) == ["sft.b 2 -> not set", "sft.c not set -> [3]"]
    assert differences({"logging_steps": 5.0}, {"logging_steps": 0.1}) == ["logging_steps 5 -> 0.1"]


REFUSED = [
    ("sft.max_length", 45, "sft.max_length: 45 would cut rows: set model.max_seq_length=45 in its place"),
    ("dpo.max_length", 45, "dpo.max_length: 45 would cut rows"),
    ("lora.r", 0, "lora.r: should be 1 or more"),
    ("lora.target_modules", [], "lora.target_modules: names no layer"),
    ("lora.target_modules", "(q_proj", "lora.target_modules: (q_proj is no regular expression (missing )"),
    ("lora.init_lora_weights", "pissa", "pissa changes the base model"),
    ("lora.init_lora_weights", "olora", "olora changes the base model"),
    ("sft.per_device_train_batch_size", 0, "sft.per_device_train_batch_size: should be 1 or more"),
    ("dpo.gradient_accumulation_steps", 0, "dpo.gradient_accumulation_steps: should be 1 or more"),
    ("sft.num_train_epochs", 0, "sft.num_train_epochs: should be above 0 (it is 0"),
    ("dpo.beta", 0, "dpo.beta: should be above 0, for example 0.1 (it is 0"),
    (
        "dpo.loss_type",
        "kto_pair",
        "dpo.loss_type: no loss kto_pair; there are sigmoid, ",
    ),
    ("dpo.loss_type", ["sigmoid", "orpo"], "dpo.loss_type: no loss orpo"),
    ("sft.loss_type", "focal", "sft.loss_type: no loss focal; there are nll, "),
    ("sft.assistant_only_loss", True, "set data.train_on=all in its place"),
    ("sft.report_to", "wand", "sft.report_to: no tracker wand, did you mean wandb?"),
    # trl#5800: after a whole epoch it was a KeyError
    (
        "sft.metric_for_best_model",
        "eval_accuracy",
        "no metric eval_accuracy, did you mean mean_token_accuracy?; evaluations measure loss, ",
    ),
    ("dpo.metric_for_best_model", "mrr", "evaluations measure loss, aux_loss, entropy, "),
    # peft#1368
    ("lora.layer_replication", [[0, 2], [1, 2]], "lora.layer_replication: repeats layers of the base model"),
    ("lora.trainable_token_indices", [], "lora.trainable_token_indices: names no token"),
    ("sft.per_device_train_batch_size", 10**20, "should be at most 65536"),
    ("dpo.pad_to_multiple_of", 10**6, "dpo.pad_to_multiple_of: should be from 1 to model.max_seq_length"),
    ("sft.dataloader_num_workers", 10**6, "sft.dataloader_num_workers: should be at most 256"),
    ("dpo.log_level", "steps", "dpo.log_level: should be one of passive, detail, debug"),
    ("sft.chat_template_path", "best", "sft.chat_template_path: set model.chat_template in its place"),
    ("sft.eos_token", "<|im_end|>", "sft.eos_token: set model.eos_token in its place"),
    ("sft.dataset_kwargs", "best", "sft.dataset_kwargs: leave it out"),
    ("sft.gradient_checkpointing_kwargs", "auto", "should be a mapping of keys and values (it is auto)"),
    ("lora.lora_alpha", 0, "lora.lora_alpha: should be above 0"),
    ("lora.lora_dropout", 1, "lora.lora_dropout: should be a share from 0 to below 1"),
    # papermill#214: a list was thought to be one run for each
    ("sft.learning_rate", [1e-4, 2e-4], "a run for each of several: `tunebook sweep`"),
]


@pytest.mark.parametrize(
    ("key", "value", "line"), REFUSED, ids=[f"{key}={value}" for key, value, _ in REFUSED]
)
def test_what_a_library_refuses_late_is_one_line_when_the_recipe_is_read(key, value, line):
    overrides = {key: value}
    if key.endswith("epochs"):
        overrides["sft.max_steps"] = -1
    with pytest.raises(UserError) as refused:
        load_recipe(overrides=overrides)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_values_that_are_right_are_taken():
    recipe = load_recipe(
        overrides={
            "sft.max_length": load_recipe().model.max_seq_length,
            "dpo.max_length": None,
            "lora.target_modules": "q_proj, v_proj",
            "lora.init_lora_weights": "gaussian",
            "sft.num_train_epochs": 0,
            "sft.max_steps": 3,
            "dpo.loss_type": ["ipo", "sft"],
            "sft.loss_type": "chunked_nll",
            "sft.report_to": None,
            "sft.gradient_checkpointing_kwargs": '{"use_reentrant": false}',
            "dpo.report_to": "None",
        }
    )
    assert recipe.lora["target_modules"] == ["q_proj", "v_proj"]
    assert recipe.sft["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    assert recipe.sft["report_to"] == recipe.dpo["report_to"] == "none"
    # PEFT would take each letter for a name.
    saved = load_recipe(overrides={"lora.modules_to_save": "embed_tokens, lm_head"})
    assert saved.lora["modules_to_save"] == ["embed_tokens", "lm_head"]
    assert load_recipe(overrides={"dpo.metric_for_best_model": "eval_rewards/margins"})
    # A regular expression is left as it is.
    pattern = r".*layers\.[0-9]{1,2}\.(q_proj|v_proj)"
    assert load_recipe(overrides={"lora.target_modules": pattern}).lora["target_modules"] == pattern


def test_a_tracker_needs_its_package(monkeypatch):
    monkeypatch.setattr(trackers, "is_installed", lambda package: package != "mlflow")
    assert load_recipe(overrides={"sft.report_to": "wandb"}).sft["report_to"] == "wandb"
    with pytest.raises(
        UserError, match=r"sft\.report_to: dagshub needs the package mlflow, .*uv pip install mlflow"
    ):
        load_recipe(overrides={"sft.report_to": ["wandb", "dagshub"]})


def test_a_package_is_looked_for_without_importing_it():
    assert trackers.is_installed("yaml")
    assert not trackers.is_installed("no_such_package")
    assert not trackers.is_installed("no_such_package.part")


@pytest.mark.parametrize("text", ["false", "False", "no", "0", "off", 0, False, "None", None])
def test_a_parameter_that_says_no_is_off(text):
    assert switch("force", text) is False


@pytest.mark.parametrize("text", ["true", "True", "yes", "1", "on", 1, True])
def test_a_parameter_that_says_yes_is_on(text):
    assert switch("force", text) is True


def test_nothing_is_the_default_and_anything_else_is_refused():
    assert switch("resume", "none", default=True) is True
    for value in ("nope", 2, "2e-4", [True]):
        with pytest.raises(UserError, match=r"force: should be true or false \(it is "):
            switch("force", value)


def test_force_false_as_text_leaves_a_finished_training_alone(capsys):
    from tunebook.training.sft import sft, sft_stage

    recipe = load_recipe()
    finished = sft_stage(recipe)
    with finished.open() as folder:
        (folder / "adapter").mkdir()
        finished.record = {"metrics": {"steps": 3}}
    assert sft(recipe, "false", "no", "None")["metrics"] == {"steps": 3}
    assert "sft is up to date" in capsys.readouterr().out


def test_parameters_of_a_notebook_as_papermill_hands_them_on():
    import datetime

    recipe = load_recipe(
        run=datetime.date(2024, 5, 1),
        overrides="{sft.max_steps: 3}",
        stage="sft",
        seed="none",
        lr="2e-4",
        epochs="None",
        batch_size="4",
    )
    assert recipe.run_dir.name == "2024-05-01" and load_recipe(run=2024).run_dir.name == "2024"
    assert recipe.seed == load_recipe().seed and recipe.sft["max_steps"] == 3
    assert recipe.sft["learning_rate"] == 2e-4 and recipe.sft["per_device_train_batch_size"] == 4
    assert recipe.sft.get("num_train_epochs") == load_recipe().sft.get("num_train_epochs")


CELL = "recipe = 'smollm2-math'\nrun = None\nlr = None\nseed = None\noverrides = {}\n"


@pytest.mark.parametrize(
    ("parameter", "hint"),
    [
        ("learningrate", ", did you mean lr? This notebook has recipe, run, lr, seed, overrides; "),
        ("learning_rate", ", did you mean lr? "),
        ("sede", ", did you mean seed? "),
        ("recepie", ", did you mean recipe? "),
        ("zzz", ". This notebook has "),
        ("epochs", ". This notebook has "),  # others have it
    ],
)
def test_an_unknown_parameter_of_a_notebook_stops_it_and_names_the_nearest(parameter, hint):
    cells = ["", CELL, f"# Parameters\nrun = 'a'\n{parameter} = 7\n", "import tunebook\n"]
    with pytest.raises(UserError) as refused:
        check_cells(cells)
    assert str(refused.value).startswith(f"unknown parameter {parameter}{hint}")
    assert "overrides: {lora.r: 32}" in str(refused.value)


def test_what_a_notebook_has_and_what_papermill_has_not_set_is_taken():
    check_cells(["", CELL, "# Parameters\nrun = 'a'\nlr = 2e-4\n", "extra = 1\n"])
    check_cells(["", "recipe = (", "# Parameters\nzzz = 1\n"])  # nothing to compare with
    check_cells(["", "# Parameters\nrecipe = 'smollm2-math'\nmine = 3\n"])  # somebody's own cell
    check_cells(["", "a = 1\n", "# Parameters\nrecipe = 'smollm2-math'\n"])


def test_reading_a_recipe_looks_at_the_parameters_of_the_notebook_around_it(monkeypatch):
    shell = types.SimpleNamespace(user_ns={"In": ["", CELL, "# Parameters\nsede = 7\n"]})
    notebook = types.ModuleType("IPython")
    monkeypatch.setattr(notebook, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    with pytest.raises(UserError, match="unknown parameter sede, did you mean seed"):
        load_recipe()
    monkeypatch.setattr(notebook, "get_ipython", lambda: None)
    assert load_recipe().name == "smollm2-math"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learningrate", "did you mean sft.learning_rate or dpo.learning_rate?"),
        ("lora_r", "did you mean lora.r?"),
        ("max_step", "did you mean sft.max_steps or dpo.max_steps?"),
        ("modle", "did you mean model?"),
        ("sft.learningrate", "did you mean learning_rate?"),
        ("model.adapter", "the adapter that DPO starts from is dpo.start"),
        ("model.tokenizer", "the tokenizer is the one of model.base"),
        ("lora.task_type", "the stages set it themselves, leave it out"),
        ("data.dataset", "did you mean data.sources?"),
        ("sft.patience", "did you mean sft.early_stopping_patience?"),
        ("dpo.ref_model", "did you mean dpo.start?"),
        ("sft.mixed_precision", ""),  # nothing is near
    ],
)
def test_a_misspelt_key_without_its_section_is_looked_for_in_all_of_them(key, hint):
    with pytest.raises(UserError, match=f"unknown key {re.escape(key)}[,:]? ?{re.escape(hint)}") as refused:
        load_recipe(overrides={key: 3})
    assert hint or "did you mean" not in str(refused.value)


class Layer:
    in_features = 8


class Model:
    """As much of a torch model as the names of its layers need."""

    def named_modules(self) -> list[tuple[str, Any]]:
        names = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.experts.0"]
        return [("model.embed_tokens", object()), *((name, Layer()) for name in names)]

    def modules(self) -> list[Any]:
        return [module for _, module in self.named_modules()]


def test_a_layer_that_the_model_does_not_have_is_named_with_those_that_it_has():
    line = (
        r"lora\.target_modules: the model has no layer query_key_value; its linear layers are q_proj, v_proj$"
    )
    with pytest.raises(UserError, match=line):
        check_targets(Model(), ["q_proj", "query_key_value"])
    with pytest.raises(UserError, match="no layer proj"):  # part of a name is not the name
        check_targets(Model(), ["proj"])
    for right in (["q_proj", "self_attn.v_proj", "embed_tokens"], "all-linear", r".*\.no_such", None):
        check_targets(Model(), right)


def test_what_peft_passes_over_in_silence_is_refused():
    """peft#1959 (a name that no module has), peft#2155, peft#1024 (layers that there are not)."""
    with pytest.raises(UserError, match=r"^lora\.modules_to_save: the model has no layer lm_haed"):
        check_targets(Model(), ["embed_tokens", "lm_haed"], "modules_to_save")
    for layers in (2, [0, 2], [-1]):
        with pytest.raises(UserError, match=r"^lora\.layers_to_transform: .*; its layers are 0 to 1$"):
            check_layers(2, layers)
    check_layers(2, [0, 1])
    check_layers(2, 1)
    check_layers(2, None)
    with pytest.raises(UserError, match=r"^lora\.r: 1000000 is more than .* inputs \(8\)"):
        check_rank(Model(), 10**6)
    check_rank(Model(), 8)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("lora.lora_rank", "did you mean lora.r?"),
        ("lora.lora_r", "did you mean lora.r?"),
        ("lora.lora_target", "did you mean lora.target_modules?"),
        ("lora.additional_target", "did you mean lora.modules_to_save?"),
        ("sft.micro_batch_size", "did you mean sft.per_device_train_batch_size?"),
        ("sft.sequence_len", "the length is set once, in model.max_seq_length"),
        ("sft.val_size", "`val` of a data source"),
        ("sft.train_on_inputs", "data.train_on names"),
        ("sft.load_in_4bit", "it is model.load_in_4bit"),
        ("dpo.pref_loss", "did you mean dpo.loss_type?"),
    ],
)
def test_keys_of_other_tools_are_named_as_what_they_are_here(key, line):
    """LlamaFactory#9545, LlamaFactory#8133 and axolotl#1446: the recipes in them."""
    with pytest.raises(UserError, match=f"unknown key {re.escape(key)}") as refused:
        load_recipe(overrides={key: 1})
    assert line in str(refused.value)


def test_a_rate_is_a_number_however_yaml_reads_it(tmp_path):
    """LlamaFactory#4014, LlamaFactory#4149, trl#1450: YAML takes 2e-5 for text."""
    (tmp_path / "own.yaml").write_text(
        "extends: smollm2-math\nsft: {learning_rate: 2e-5, weight_decay: 1E-2}\nlora: {lora_dropout: 5e-2}\n"
    )
    recipe = load_recipe(tmp_path / "own.yaml")
    assert recipe.sft["learning_rate"] == 2e-5 and recipe.sft["weight_decay"] == 0.01
    assert recipe.lora["lora_dropout"] == 0.05


def test_fewer_steps_than_are_done_throw_no_checkpoint_away():
    """LlamaFactory#1813, SimpleTuner#1172: 10 steps are done, and 8 are asked for."""
    checkpoint = interrupted(max_steps=20)
    with pytest.raises(UserError, match=r"sft\.max_steps 20 -> 8\)"), stage(max_steps=8).open():
        pass
    assert checkpoint.exists()


def test_runs_of_before_there_was_a_loader_to_choose_are_up_to_date():
    before = {"model": {"base": "x"}, "sft": {"learning_rate": 1e-4}}
    now = {"model": {"base": "x", "loader": "FastModel"}, "sft": {"learning_rate": 1e-4}}
    assert of_the_weights(before) == of_the_weights(now)
    other = now | {"model": {"base": "x", "loader": "FastLanguageModel"}}
    assert of_the_weights(before) != of_the_weights(other)


def test_out_of_memory_is_one_line_wherever_it_happens(run_cli, monkeypatch):
    class OutOfMemoryError(RuntimeError):
        pass

    def full(*args):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore\nlines")

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(OutOfMemoryError=OutOfMemoryError))
    monkeypatch.setattr(prepare, "prepare", full)
    done = run_cli("prepare")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert (
        done.stderr.strip().startswith("tunebook: out of memory: ") and "evaluate.batch_size" in done.stderr
    )


def test_an_error_that_nobody_has_foreseen_is_one_line_and_its_traceback_lies_in_the_run_folder(
    monkeypatch, capsys
):
    def fail(*arguments: Any) -> None:
        raise KeyError("a\nb hf_abcdefghijklmnopqrstuvwxyz0123456789")

    folder = load_recipe().run_dir
    folder.mkdir(parents=True)
    monkeypatch.setattr(prepare, "prepare", fail)
    monkeypatch.setattr("sys.argv", ["tunebook", "prepare"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 1 and len(lines) == 1 and lines[0].startswith("tunebook: KeyError: ")
    assert str(folder / "traceback.txt") in lines[0] and "hf_abc" not in lines[0]
    text = (folder / "traceback.txt").read_text()
    assert "in fail" in text and "hf_abc" not in text
    monkeypatch.setenv("TUNEBOOK_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.main()

"""Whatever `sft`, `dpo` and `lora` are given that their classes have: the first step, or one line, in time.

Each draw makes arguments, model, adapter, trainer and optimiser of the tiny model, and trains one step.
50 times as many draws as in CI:

    uv run pytest tests/stages/test_fuzz_trainers.py --hypothesis-profile=long
"""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import random
import traceback
import typing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from fuzzing import one_line, scaled

from tunebook.models import loading
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe
from tunebook.recipe.trainer_keys import trainer_section
from tunebook.recipe.trainer_values import loss_types, schedule_parameters

DRAWS = 150
"""Of each trainer, before `scaled`."""

WORDS = {
    "lr_scheduler_type": [*schedule_parameters(), "reduce_lr_on_plateau", "greedy"],
    "lr_scheduler_kwargs": [{"num_cycles": 2}, {"min_lr": 1e-6}, {"num_decay_steps": 2}, '{"power": 2}', "{"],
    "loss_weights": [[1.0], [1.0, 0.2], [0]],
    "optim": ["adamw_torch", "adamw_8bit", "sgd", "adafactor", "lion_8bit", "galore_adamw", "lomo"],
    "optim_args": ["rank=8", "eps=1e-3", "rank"],
    "target_modules": ["q_proj", "q_proj,v_proj", "all-linear", ".*proj", ["q_proj", "zzz"], "("],
    "modules_to_save": [["embed_tokens"], "lm_head", ["embed_tokens", "lm_head"]],
    "rank_pattern": [{"q_proj": 4}, {"q_proj": 0}, {"zzz": 4}],
    "init_lora_weights": [True, "gaussian", "orthogonal", "pissa", "eva", "zzz"],
    "logging_strategy": ["steps", "epoch", "no"],
    "eval_strategy": ["steps", "epoch", "no"],
    "save_strategy": ["steps", "epoch", "no", "best"],
    "train_sampling_strategy": ["random", "sequential", "group_by_length"],
    "packing_strategy": ["bfd", "wrapped", "bfd_split"],
    "eos_token": ["<|im_end|>", "<|endoftext|>", "</s>"],
    "pad_token": ["<|im_end|>", "<|endoftext|>", "<pad>"],
    "dataset_kwargs": [{"skip_prepare_dataset": True}, {"add_special_tokens": False}],
    "gradient_checkpointing_kwargs": [{"use_reentrant": False}],
    "neftune_noise_alpha": [5],
    "f_divergence_type": ["reverse_kl", "js_divergence", "alpha_divergence", "forward_kl"],
}
"""What people write, where the type alone says little."""

ODD = ["no", "steps", "best", "all", "none", "auto", "", "zzz", [], ["a"], {}, {"a": 1}, 0, 1, -1, None]
NUMBERS = [0, 1, 2, 3, 8, 16, 64, -1, 10**6, 10**20]
FRACTIONS = [0, 1e-5, 2e-4, 0.1, 0.5, 1, 2.5, -0.1, 1e9, float("nan"), float("inf")]

NEVER = {"max_steps", "push_to_hub", "deepspeed", "fsdp", "parallelism_config", "trackio_space_id", "start"}
"""Left out: how long it trains, what asks the network, a launcher, or for another adapter."""


def value_of(chance: random.Random, section: str, key: str, kind: Any) -> Any:
    """A value that a key's type takes or that people write there, and now and then something else."""
    kinds = typing.get_args(kind) or (kind,)
    likely = list(WORDS.get(key, []))
    if key == "loss_type":
        likely += [*loss_types(section), ["sigmoid", "sft"]]
    if bool in kinds:
        likely += [True, False]
    if int in kinds:
        likely += NUMBERS
    if float in kinds:
        likely += FRACTIONS
    if not likely or chance.random() < 0.2:
        return chance.choice(ODD)
    return chance.choice(likely)


def draw(number: int, section: str) -> dict[str, Any]:
    """One to four settings of a trainer and its adapter; the same ones for the same number."""
    chance = random.Random(f"{section} {number}")
    settings = {}
    for _ in range(chance.randint(1, 4)):
        part = chance.choice([section, section, "lora"])
        fields = trainer_section(part).model_fields
        keys = [key for key in fields if key not in NEVER]
        # What decides most is drawn more often than the some 150 others.
        favoured = [key for key in keys if key in WORDS or "steps" in key or "batch" in key]
        key = chance.choice(keys + 2 * favoured)
        settings[f"{part}.{key}"] = value_of(chance, part, key, fields[key].annotation)
    return settings


@pytest.fixture(scope="module")
def recipes(tiny, tmp_path_factory) -> dict[str, Path]:
    """A recipe of SFT and one of DPO from the base model: one step on few short rows."""
    folder = tmp_path_factory.mktemp("recipes")
    rows, pairs = [], []
    for n in range(1, 13):
        rows.append({"prompt": f"What is {n}?", "completion": f"It is {n}, as I said {n} times."})
        pairs.append({"prompt": f"Which is {n}?", "chosen": f"It is {n}.", "rejected": f"A cheese of {n}."})
    for name, lines in (("rows", rows), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trainer = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    trainer |= {"save_strategy": "no", "eval_strategy": "no"}
    family = {"extends": "smollm2", "model": {"base": str(tiny), "dtype": "float32"}}
    sections = {
        "sft": {"data": {"sources": [{"format": "chat", "path": "rows.jsonl", "val": 0.2}]}, "sft": trainer},
        "dpo": {"pairs": {"dataset": "pairs.jsonl", "val": 0.2}, "dpo": trainer},
    }
    paths = {}
    for name, content in sections.items():
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump({**family, **content}))
    return paths


@pytest.fixture(scope="module")
def train(recipes):
    """A function that trains with settings on a copy of the one tiny model; returns recipe and record."""
    from accelerate.state import AcceleratorState
    from transformers.utils import logging

    from tunebook.training import end_token
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    stages = {"sft": sft, "dpo": dpo}
    loaded: dict[str, Any] = {}
    load_model = loading.load_model

    def load(recipe: Recipe) -> tuple[Any, Any]:
        key = json.dumps(
            [recipe.model.model_dump(mode="json"), recipe.lora.get("use_gradient_checkpointing")]
        )
        if key not in loaded:
            loaded[key] = load_model(recipe)
        return copy.deepcopy(loaded[key])

    def train(section: str, settings: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
        recipe = load_recipe(recipes[section], overrides=settings)
        with mock.patch.dict(os.environ):  # accelerate is told by variables
            try:
                return recipe, stages[section](recipe, force=True)
            finally:
                AcceleratorState._reset_state(reset_partial_state=True)

    verbosity = logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_model", load)
        patch.setattr(end_token, "audit_answers", lambda *of_the_model: {})  # ten times as long as the step
        # Half of a draw would be spent on looking through what was imported for garbage.
        gc.collect()
        gc.freeze()
        yield train
    gc.unfreeze()
    logging.set_verbosity(verbosity)
    import torch

    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("section", ["sft", "dpo"])
def test_the_first_step_or_one_line(train, section):
    # As it stands it trains: what is refused below is refused for what was drawn.
    assert train(section, {})[1]["metrics"]["steps"] == 1
    failed, trained = [], 0
    for number in range(scaled(DRAWS)):
        settings = draw(number, section)
        try:
            with one_line(10):
                train(section, settings)
                trained += 1
        except Exception as error:
            failed.append(f"{number}: {settings}: {traceback.format_exception(error)[-1]}")
    assert not failed, "\n".join(failed)
    assert trained > scaled(DRAWS) / 5


TRAINS = {
    # Row 68 of the troubles: what people set, and it is to train.
    "NEFTune": ("sft", {"sft.neftune_noise_alpha": 5}),
    "8-bit Adam": ("sft", {"sft.optim": "adamw_8bit"}),
    "packing": ("sft", {"sft.packing": True}),
    "all linear layers": ("sft", {"lora.target_modules": "all-linear"}),
    # QLoRA's notebooks
    "paged Adam": ("dpo", {"dpo.optim": "paged_adamw_32bit"}),
    # prime-rl#968: an error where all steps are warmup
    "warmup to the end": ("sft", {"sft.warmup_steps": 1, "sft.lr_scheduler_type": "cosine"}),
    # datasets#2470 and trl#1964: more processes than rows, a crash or no end
    "more processes than rows": ("sft", {"sft.dataset_num_proc": 3}),
}


@pytest.mark.parametrize("case", TRAINS)
def test_what_people_set_trains(train, case):
    assert train(*TRAINS[case])[1]["metrics"]["steps"] == 1


def test_all_layers_by_the_word_of_another_tool(train):
    """LlamaFactory#7627: `lora_target: all` is PEFT's all-linear."""
    recipe, _ = train("sft", {"lora.target_modules": "all"})
    config = json.loads((recipe.run_dir / "sft" / "adapter" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == 14  # seven in each of two layers


@pytest.mark.parametrize("section", ["sft", "dpo"])
def test_gradient_checkpointing_leaves_no_layer_untrained(train, section):
    """open-unlearning#178: without gradients of the inputs, `lora_B` of nearly all layers stayed 0."""
    from safetensors.torch import load_file

    settings = {"gradient_checkpointing": True, "warmup_steps": 0, "learning_rate": 1e-2}
    recipe, _ = train(section, {f"{section}.{key}": value for key, value in settings.items()})
    weights = load_file(recipe.run_dir / section / "adapter" / "adapter_model.safetensors")
    moved = {name: float(weight.abs().max()) for name, weight in weights.items() if "lora_B" in name}
    assert len(moved) == 14 and min(moved.values()) > 0


@pytest.mark.parametrize(
    ("rows", "settings", "steps"),
    [
        (1, {}, 1),
        (3, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8, "num_train_epochs": 2}, 2),
        (8, {"num_train_epochs": 0.5}, 2),
    ],
    ids=["one row", "fewer rows than a step takes", "half an epoch"],
)
def test_a_few_rows_are_trained_on(train, tmp_path, rows, settings, steps):
    """unsloth#1962, autotrain-advanced#397: row 66 of the troubles."""
    file = tmp_path / "few.jsonl"
    words = ("one", "two", "three", "four", "five", "six", "seven", "eight")
    lines = [{"prompt": f"Say {word} for me.", "completion": f"Here is {word}."} for word in words[:rows]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {
        f"sft.{key}": value for key, value in {"num_train_epochs": 1, "max_steps": -1, **settings}.items()
    }
    keys["data.sources"] = [{"format": "chat", "path": str(file), "val": 0, "test": 0}]
    _, record = train("sft", keys)
    assert record["rows"]["train"] == rows and record["metrics"]["steps"] == steps


def test_dropout_and_precomputed_references_leave_the_first_loss_at_ln_2(train):
    """trl#1236: a loss that is 0 from the first step on has a wrong reference. Row 69 of the troubles."""
    _, record = train("dpo", {"lora.lora_dropout": 0.1, "dpo.precompute_ref_log_probs": True})
    # TRL takes the reference in batches of its own: the last digits differ.
    assert record["audit"]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert record["audit"]["margin"] == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        # The steps of the best model, as people set them.
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_steps": 3, "eval_steps": 2}
            | {"save_strategy": "steps"},
            r"^sft\.\w+: .*round multiple of the evaluation steps, but found 3",
        ),
        ({"accelerator_config": "nowhere.json"}, r"^sft\.accelerator_config: .*nowhere\.json"),
        ({"logging_steps": float("inf")}, r"^sft\.logging_steps: "),
        ({"torch_compile": True}, r"^sft\.torch_compile: on a CPU"),
    ],
    ids=["best model", "file", "infinity", "compile"],
)
def test_what_the_arguments_refuse_names_the_key(train, settings, line):
    with pytest.raises(UserError, match=line):
        train("sft", {f"sft.{key}": value for key, value in settings.items()})

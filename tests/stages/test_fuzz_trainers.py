"""Whatever `sft`, `dpo` and `lora` are given that their classes have: arguments or one line, in bounded time.

20 times as many draws as in CI:

    uv run pytest tests/stages/test_fuzz_trainers.py --hypothesis-profile=long
"""

from __future__ import annotations

import tempfile
import typing
from pathlib import Path
from typing import Any

import pytest
from fuzzing import cases, one_line
from hypothesis import example, given
from hypothesis import strategies as st

from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.trainer_keys import trainer_section
from tunebook.recipe.trainer_values import loss_types, schedule_parameters
from tunebook.training.arguments import trainer_arguments

WORDS = {
    "lr_scheduler_type": [*schedule_parameters(), "reduce_lr_on_plateau", "greedy"],
    "lr_scheduler_kwargs": [{"num_cycles": 2}, {"min_lr": 1e-6}, {"num_decay_steps": 2}, '{"power": 2}', "{"],
    "loss_type": [*loss_types("dpo"), *loss_types("sft"), ["sigmoid", "sft"], []],
    "loss_weights": [[1.0], [1.0, 0.2], [0]],
    "optim": [
        "adamw_torch",
        "adamw_8bit",
        "sgd",
        "adafactor",
        "lion_8bit",
        "galore_adamw",
        "lomo",
        "rmsprop",
    ],
    "target_modules": ["q_proj", "q_proj,v_proj", "all-linear", ".*proj", ["q_proj", "zzz"], "("],
    "init_lora_weights": [True, "gaussian", "orthogonal", "pissa", "eva", "zzz"],
}
"""What people may write, where the type alone says little."""

ODD = [
    "no",
    "steps",
    "epoch",
    "best",
    "all",
    "none",
    "auto",
    "",
    "zzz",
    [],
    ["a"],
    {},
    {"a": 1},
    0,
    1,
    -1,
    0.5,
    None,
]
NUMBERS = [0, 1, 2, 3, 8, 16, 64, -1, 10**6, 10**20]
FRACTIONS = [0, 1e-5, 2e-4, 0.1, 0.5, 1, 2.5, -0.1, 1e9, float("nan"), float("inf")]


def values_of(key: str, kind: Any) -> st.SearchStrategy[Any]:
    """Values that a key's type takes, what people write there, and now and then something else."""
    kinds = typing.get_args(kind) or (kind,)
    pools = [WORDS.get(key, [])]
    if bool in kinds:
        pools.append([True, False])
    if int in kinds:
        pools.append(NUMBERS)
    if float in kinds:
        pools.append(FRACTIONS)
    likely = [value for pool in pools for value in pool]
    return st.sampled_from(likely * 3 + ODD)


NEVER = {"push_to_hub", "deepspeed", "fsdp", "parallelism_config", "tpu_num_cores"}
"""Left out: what asks the network, and what asks for a launcher."""


@st.composite
def settings_of(draw, section: str) -> dict[str, Any]:
    fields = trainer_section(section).model_fields
    keys = [key for key in fields if key not in NEVER]
    # What decides most is drawn more often than the some 150 others.
    favoured = [key for key in keys if key in WORDS or "steps" in key or "batch" in key or "strategy" in key]
    chosen = draw(st.lists(st.sampled_from(keys + 3 * favoured), min_size=1, max_size=4, unique=True))
    return {f"{section}.{key}": draw(values_of(key, fields[key].annotation)) for key in chosen}


@pytest.fixture(scope="module")
def configs(embedded):
    from tunebook.models import backend

    backend.backend()
    from trl import DPOConfig, SFTConfig

    return {"sft": SFTConfig, "dpo": DPOConfig}


@pytest.mark.parametrize("section", ["sft", "dpo"])
def test_arguments_of_a_trainer(configs, section):
    @cases(200)
    @given(settings_of(section))
    def check(overrides):
        with tempfile.TemporaryDirectory() as folder, one_line():
            recipe = load_recipe(overrides=overrides)
            trainer_arguments(configs[section], recipe, section, Path(folder))

    check()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        # The steps of the best model, as people set them.
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_steps": 3, "eval_steps": 2},
            r"^sft\.\w+: .*round multiple of the evaluation steps, but found 3",
        ),
        ({"accelerator_config": "nowhere.json"}, r"^sft\.accelerator_config: .*nowhere\.json"),
        ({"logging_steps": float("inf")}, r"^sft\.logging_steps: "),
    ],
    ids=["best model", "file", "infinity"],
)
def test_what_the_arguments_refuse_names_the_key(configs, tmp_path, settings, line):
    recipe = load_recipe(overrides={f"sft.{key}": value for key, value in settings.items()})
    with pytest.raises(UserError, match=line):
        trainer_arguments(configs["sft"], recipe, "sft", tmp_path)


FIRST_STEP = {
    "sft": [
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "optim",
        "loss_type",
        "neftune_noise_alpha",
        "learning_rate",
        "warmup_steps",
        "weight_decay",
        "label_smoothing_factor",
        "packing",
        "completion_only_loss",
        "dataloader_num_workers",
        "train_sampling_strategy",
    ],
    "lora": ["r", "lora_alpha", "lora_dropout", "bias", "target_modules", "init_lora_weights", "use_rslora"],
}
"""Settings that a library looks at only when model, adapter, optimiser or loss is made."""


@st.composite
def trained_settings(draw) -> dict[str, Any]:
    settings = {}
    for section, keys in FIRST_STEP.items():
        fields = trainer_section(section).model_fields
        for key in draw(st.lists(st.sampled_from(keys), max_size=2, unique=True)):
            settings[f"{section}.{key}"] = draw(values_of(key, fields[key].annotation))
    return settings


def test_through_the_first_step(configs, tiny_recipe, monkeypatch):
    from tunebook.training import audits
    from tunebook.training.sft import sft

    # Eight answers take ten times as long as the one step.
    monkeypatch.setattr(audits, "ANSWERED", 1)

    fixed = {
        "sft.max_steps": 1,
        "evaluate.max_new_tokens": 4,
        "sft.eval_strategy": "no",
        "sft.save_strategy": "no",
    }
    fixed["data.sources"] = [{"format": "geometry", "train": 8, "val": 0, "test": 0}]

    # As it stands it trains: what is refused below is refused for what was drawn.
    assert sft(load_recipe(tiny_recipe, overrides=fixed))["metrics"]["steps"] == 1

    @cases(20)
    @given(trained_settings())
    @example({"lora.target_modules": "("})
    @example({"sft.optim": "galore_adamw"})
    @example({"sft.learning_rate": float("nan")})
    def check(overrides):
        with one_line(60):
            sft(load_recipe(tiny_recipe, overrides=fixed | overrides), force=True)

    check()

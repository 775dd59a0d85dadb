"""Whatever `sft`, `dpo` and `lora` are given that their classes have: arguments or one line, in bounded time.

20 times as many draws as in CI:

    uv run pytest tests/stages/test_fuzz_trainers.py --hypothesis-profile=long
"""

from __future__ import annotations

import copy
import gc
import json
import tempfile
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
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

ODD = ["no", "steps", "epoch", "best", "all", "none", "auto", "", "zzz", [], ["a"], {}, {"a": 1}]
ODD += [0, 1, -1, 0.5, None]

BY_TYPE = {
    bool: [True, False],
    int: [0, 1, 2, 3, 8, 16, 64, -1, 10**6, 10**20],
    float: [0, 1e-5, 2e-4, 0.1, 0.5, 1, 2.5, -0.1, 1e9, float("nan"), float("inf")],
    str: ["no", "steps", "epoch", "best", "auto", "zzz", ""],
    list: [[], ["a"], [0], [0.5]],
    dict: [{}, {"a": 1}, {"q_proj": 2}],
}


def values_of(key: str, kind: Any, odd: bool = True) -> st.SearchStrategy[Any]:
    """Values that a key's type takes, what people write there, and with `odd` now and then something else."""
    likely = list(WORDS.get(key, []))
    for each in typing.get_args(kind) or (kind,):
        likely += BY_TYPE.get(typing.get_origin(each) or each, [])
    return st.sampled_from(likely * 3 + ODD if odd or not likely else likely)


NEVER = {"push_to_hub", "deepspeed", "fsdp", "parallelism_config", "tpu_num_cores"}
"""Left out: what asks the network, and what asks for a launcher."""


@st.composite
def settings_of(draw, section: str, odd: bool = True) -> dict[str, Any]:
    fields = trainer_section(section).model_fields
    keys = [key for key in fields if key not in NEVER]
    # What decides most is drawn more often than the some 150 others.
    favoured = [key for key in keys if key in WORDS or "steps" in key or "batch" in key or "strategy" in key]
    chosen = draw(st.lists(st.sampled_from(keys + 3 * favoured), min_size=1, max_size=4, unique=True))
    return {f"{section}.{key}": draw(values_of(key, fields[key].annotation, odd)) for key in chosen}


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


COSTLY = {"torch_compile", "torch_compile_backend", "torch_compile_mode", "dataloader_num_workers"}
"""Left out of what is trained: a compiler and other processes take longer than all the rest."""


@st.composite
def trained_settings(draw, section: str) -> dict[str, Any]:
    """Settings of a trainer, of the adapter or of both."""
    settings = {}
    for chosen in draw(st.sampled_from([[section], ["lora"], [section, "lora"]])):
        settings |= draw(settings_of(chosen, odd=False))
    return {key: value for key, value in settings.items() if key.partition(".")[2] not in COSTLY}


@pytest.mark.parametrize("section", ["sft", "dpo"])
def test_through_the_first_step(configs, tiny_recipe, tmp_path, monkeypatch, section):
    """All that the sections' classes have, on a tiny model: half a second a draw."""
    from tunebook.models import loading
    from tunebook.training import audits
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    train = {"sft": sft, "dpo": dpo}[section]
    pairs = [{"prompt": f"Number {n}?", "chosen": f"It is {n}.", "rejected": "A cheese."} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    content = yaml.safe_load(tiny_recipe.read_text())
    content["data"]["sources"] = [{"format": "geometry", "train": 8, "val": 4, "test": 0}]
    content["pairs"] = {"dataset": "pairs.jsonl", "val": 0.3}
    content["sft"] = {}
    content["dpo"] = {"start": "base"}
    tiny_recipe.write_text(yaml.safe_dump(content))
    quick = {f"{section}.eval_strategy": "no", f"{section}.save_strategy": "no"}
    one_step = {f"{section}.max_steps": 1}

    # As it stands it trains: what is refused below is refused for what was drawn.
    assert train(load_recipe(tiny_recipe, overrides=quick | one_step))["metrics"]["steps"] == 1

    # The model is read once, nothing is asked of it afterwards, and what lives long is not searched for
    # garbage after each draw: a fourth of the time.
    model, tokenizer = loading.load_model(load_recipe(tiny_recipe))
    monkeypatch.setattr(loading, "load_model", lambda recipe: (copy.deepcopy(model), tokenizer))
    monkeypatch.setattr(audits, "audit_answers", lambda *arguments: {})
    gc.collect()
    gc.freeze()

    @cases(150)
    @given(trained_settings(section))
    @example({"lora.target_modules": "("})
    @example({f"{section}.optim": "galore_adamw"})
    @example({f"{section}.learning_rate": float("nan")})
    def check(overrides):
        with one_line(20):
            train(load_recipe(tiny_recipe, overrides=quick | overrides | one_step), force=True)

    try:
        check()
    finally:
        gc.unfreeze()

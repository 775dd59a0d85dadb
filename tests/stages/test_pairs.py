"""Preference pairs are right on one side and wrong on the other, whatever they are made of."""

from __future__ import annotations

import itertools
import json

import datasets
import pytest
import whole_recipe
import yaml
from pair_rows import RIGHT, ROW, WRONG, made, messages, sample

from school_geometry.problems import problems
from tunebook.checkers.maths import verify
from tunebook.data.prepare import data_stage, prepare
from tunebook.data.storage import read_parquet, training_rows, write_parquet
from tunebook.generation.answers import Answer
from tunebook.pairs.pair import COLUMNS
from tunebook.pairs.pairs import _rows, pairs, pairs_stage
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import PairsConfig


def test_written_pairs_are_what_trl_wants(tmp_path):
    (pair,) = made(PairsConfig(samples=2), [ROW], [sample(RIGHT), sample(WRONG)])
    write_parquet([pair], tmp_path / "p.parquet", **COLUMNS)
    (row,) = datasets.Dataset.from_parquet(str(tmp_path / "p.parquet"))
    assert row["prompt"] == ROW["prompt"] and row["chosen"][0]["role"] == "assistant"
    assert {
        "source_id",
        "strategy",
        "gold",
        "chosen_correct",
        "rejected_correct",
        "chosen_tokens",
        "rejected_tokens",
    } <= set(row)
    assert json.loads(row["sampling"])["temperature"] == 1.0


GOOD = {"prompt": "Name a river in Europe, please.", "chosen": "The Danube.", "rejected": "Paris."}
SET = [
    (GOOD, None),
    (
        {  # UltraFeedback's form
            "prompt": "Why is the sky blue at noon?",
            "chosen": messages("Why is the sky blue at noon?", "Rayleigh scattering."),
            "rejected": messages("Why is the sky blue at noon?", "Paint."),
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        None,
    ),
    (
        {
            "prompt": messages("What is 2 + 3?"),
            "chosen": messages("", "\\boxed{5}")[1:],
            "rejected": messages("", "\\boxed{6}")[1:],
            "answer": "5",
        },
        None,
    ),
    (GOOD | {"prompt": "A", "rejected": " The  Danube."}, "chosen is rejected"),
    (GOOD | {"prompt": "B", "rejected": ""}, "empty completion"),
    (GOOD | {"prompt": "C", "rejected": "GENERATION_ERROR"}, "error text"),
    (GOOD | {"prompt": "D", "score_chosen": 4, "score_rejected": 4}, "scored no better"),
    (
        GOOD | {"prompt": "E", "chosen": messages("E", "x"), "rejected": messages("F", "y")},
        "different prompts",
    ),
    ({"prompt": "G", "chosen": "x"}, "missing column"),
    (GOOD | {"prompt": "H", "chosen": "\\boxed{6}", "answer": "5"}, "chosen is wrong"),
    (
        GOOD | {"prompt": "I", "chosen": "\\boxed{5}", "rejected": "\\boxed{5.0}", "answer": "5"},
        "rejected is right",
    ),
    (GOOD | {"prompt": "J", "chosen": "word " * 500}, "too long"),
    (GOOD, "duplicate"),
    (
        GOOD | {"prompt": "name a river in Europe please", "chosen": "The\nDanube."},
        "duplicate",
    ),  # but for layout, case and punctuation
    ("not JSON", "bad JSON"),
    (GOOD | {"rejected": "London."}, None),  # a prompt may have several pairs
    (GOOD | {"chosen": "The Rhine."}, None),
    (GOOD | {"chosen": "Paris.", "rejected": "The Danube."}, None),
]


def test_an_existing_set_is_read_in_every_form_and_each_bad_row_named(tmp_path):
    """Without a model: also a question of the test split is refused."""
    (stolen,) = problems("test", 1)
    rows = [*SET, (GOOD | {"prompt": f"Please: {stolen.question}"}, "in the test or val split")]
    rows.append(
        (GOOD | {"prompt": "K", "rejected": "word " * 358}, "too long")
    )  # its text is not, with the chat template's tokens it is
    path = tmp_path / "set.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row, _ in rows))
    content = whole_recipe.content("smollm2-math")
    content |= {"pairs": {"methods": ["dataset"], "dataset": str(path), "val": 0}}
    content["data"]["for_pairs"] = 0
    content["data"]["sources"] = [{"format": "geometry", "train": 5, "val": 2, "test": 6}]
    (tmp_path / "set.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"14 of 20 rows were put aside: .*`data\.max_aside: 0\.71` goes on"):
        pairs(load_recipe(tmp_path / "set.yaml"))
    recipe = load_recipe(tmp_path / "set.yaml", overrides={"data.max_aside": 0.71})
    record = pairs(recipe)
    found = list(read_parquet(pairs_stage(recipe).dir / "train.parquet"))
    assert [p["source_id"] for p in found] == [
        f"set.jsonl:{i}" for i, (_, why) in enumerate(rows, 1) if not why
    ]
    assert [p["prompt"][0]["role"] for p in found] == ["system"] * 6 and found[1]["rejected"] == messages(
        "", "Paint."
    )[1:]
    assert [(p["chosen_correct"], p["rejected_correct"]) for p in found[:3]] == [
        (None, None),
        (None, None),
        (True, False),
    ]
    quarantine = [
        json.loads(line) for line in (pairs_stage(recipe).dir / "quarantine.jsonl").read_text().splitlines()
    ]
    assert [(int(r["source_id"].split(":")[1]), r["reason"]) for r in quarantine] == [
        (i, why) for i, (_, why) in enumerate(rows, 1) if why
    ]
    assert record["quarantined"]["missing column"] == 1 and record["strategies"] == {"dataset": 6}


@pytest.fixture(scope="session")
def taught(tmp_path_factory, embedded):
    """The embedded model after a few steps on a handful of sums.

    At a high temperature it is right now and then.
    """
    from _pytest.monkeypatch import MonkeyPatch

    from tunebook.training.sft import sft

    folder = tmp_path_factory.mktemp("taught")
    sums = itertools.product((12, 23, 34), (5, 17, 48))
    rows = [
        {
            "prompt": f"What is {a} + {b}?",
            "completion": f"### Solution\n1. {a} + {b} = {a + b}\n### Final Answer\n\\boxed{{{a + b}}}",
            "answer": str(a + b),
        }
        for a, b in sums
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = whole_recipe.content("smollm2-math")
    content |= {
        "name": "taught",
        "pairs": {
            "samples": 8,
            "temperature": 1.5,
            "max_new_tokens": 48,
            "batch_size": 12,
            "val": 0,
            "max_length_ratio": 3,
        },
    }
    content["data"]["for_pairs"] = 0
    content["data"]["sources"] = [{"format": "chat", "path": str(folder / "sums.jsonl"), "split": "train"}]
    content["sft"] |= {
        "per_device_train_batch_size": 3,
        "max_steps": 14,
        "learning_rate": 2e-3,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    (folder / "taught.yaml").write_text(yaml.safe_dump(content))
    with MonkeyPatch.context() as patch:
        patch.setenv("TUNEBOOK_RUNS", str(folder / "runs"))
        sft(load_recipe(folder / "taught.yaml"))
    return folder


def test_both_sides_of_a_sampled_pair_are_verified(taught, monkeypatch):
    monkeypatch.setenv("TUNEBOOK_RUNS", str(taught / "runs"))
    recipe = load_recipe(taught / "taught.yaml")
    pairs(recipe)
    found = list(read_parquet(recipe.run_dir / "pairs" / "train.parquet"))
    assert len(found) >= 3
    for p in found:
        assert (
            verify(p["chosen"][0]["content"], p["gold"], boxed_only=True).correct
            is p["chosen_correct"]
            is True
        )
        assert (
            verify(p["rejected"][0]["content"], p["gold"], boxed_only=True).correct
            is p["rejected_correct"]
            is False
        )


def test_the_model_is_asked_for_errors_and_a_second_round_starts_from_the_first(taught, monkeypatch):
    from tunebook.runs.stage import finished_key
    from tunebook.runs.stages import model_names
    from tunebook.training.dpo import dpo

    monkeypatch.setenv("TUNEBOOK_RUNS", str(taught / "runs"))
    keys = {
        "pairs.methods": ["on_policy", "injected_error"],
        "dpo.max_steps": 2,
        "dpo.save_strategy": "no",
        "pairs.prompts": 5,
        "pairs.rounds": 2,
    }
    keys["dpo.eval_strategy"] = "steps"  # and pairs.val is 0: nothing to evaluate on
    recipe = load_recipe(taught / "taught.yaml", overrides=keys)
    assert recipe.run_dir.joinpath("sft").exists()
    first = pairs(recipe)
    assert (
        sum(first["prompts"].values()) == sum(first["error_prompts"].values()) == 5
    )  # each has a pair or a reason
    assert sum(first["errors"].values()) == 5 and sum(first["samples"].values()) == 40
    dpo(recipe)
    second = pairs(recipe, 2)
    assert second["inputs"]["dpo"] == finished_key(recipe, "dpo") and first["inputs"]["sft"] == finished_key(
        recipe, "sft"
    )
    record = dpo(recipe, 2)
    assert record["audit"]["loss"] == pytest.approx(0.6931, abs=0.01)  # the reference is round 1's model
    assert (recipe.run_dir / "dpo-2" / "adapter" / "adapter_model.safetensors").exists()
    assert model_names(recipe) == ["base", "sft", "dpo", "dpo-2"]
    ids = [
        {p["source_id"] for p in read_parquet(recipe.run_dir / f / "train.parquet")}
        for f in ("pairs", "pairs-2")
    ]
    assert ids[0] <= {f"sums.jsonl:{i}" for i in range(1, 6)} and ids[1] <= {
        f"sums.jsonl:{i}" for i in (6, 7, 8, 9, 1)
    }


def test_what_is_done_with_the_samples_may_change_and_none_is_asked_again(monkeypatch):
    asked = []

    def answering(source, prompts, sampling, images, *, skip, label, usage):
        for i in range(len(prompts)):
            if i not in skip:
                asked.append(i)
                # Of each prompt some are right by chance, some are wrong.
                yield {i: Answer(f"It is so.\n\\boxed{{{60 + i % 2}}}", 5, False)}

    monkeypatch.setattr("tunebook.generation.generate.generate", answering)
    monkeypatch.setattr(
        "tunebook.pairs.work.check_sample", lambda text, *rest: "right" if "60" in text else "wrong"
    )
    keys = {
        "data.sources": [{"format": "geometry", "train": 12, "val": 2, "test": 2}],
        "pairs.server": {"url": "http://x/v1", "model": "m"},
        "pairs.prompts": 4,
        "pairs.samples": 2,
        "pairs.val": 0,
    }

    def count(**changes) -> tuple[int, dict[str, int]]:
        asked.clear()
        changed = {f"pairs.{key}": value for key, value in changes.items()}
        record = pairs(load_recipe(overrides=keys | changed))
        return len(asked), record["rows"]

    assert count() == (8, {"train": 4, "val": 0})
    asked_again, rows = count(val=0.6, per_prompt=2, max_length_ratio=3.0)
    assert asked_again == 0 and rows["val"] > 0 and sum(rows.values()) == 4
    assert count(temperature=0.5)[0] == 8
    assert count(temperature=0.5, batch_size=3)[0] == 0
    keys["pairs.server"] = {"url": "http://x/v1", "model": "another"}
    assert count(temperature=0.5)[0] == 8


def test_rows_kept_for_pairs_are_not_trained_on(tmp_path):
    few = [{"format": "geometry", "train": 150, "val": 6, "test": 6}]
    recipe = load_recipe(overrides={"data.sources": few, "data.for_pairs": 0.3})
    prepare(recipe)
    sft, kept = ({r["source_id"] for r in training_rows(recipe, name)} for name in ("sft", "pairs"))
    assert (
        not sft & kept and len(sft | kept) == recipe_rows(recipe) and 0.2 < len(kept) / len(sft | kept) < 0.4
    )
    assert {r["source_id"] for r in _rows(recipe, 1)} <= kept
    whole = load_recipe(overrides={"data.sources": few, "data.for_pairs": 0})
    assert not data_stage(whole).done  # SFT on other rows is another SFT
    prepare(whole)
    assert len(training_rows(whole, "sft")) == len(training_rows(whole, "pairs")) == recipe_rows(whole)


def test_a_source_for_pairs_alone_is_not_trained_on():
    few = {"format": "geometry", "val": 0, "test": 0}
    sources = [
        few | {"train": 60, "val": 6, "wordings": [0], "use": "sft"},
        few | {"train": 40, "wordings": [1, 2], "use": "pairs"},
    ]
    recipe = load_recipe(overrides={"data.sources": sources, "data.for_pairs": 0})
    prepare(recipe)
    sft, kept = (
        {r["source_id"].rsplit("/", 1)[1] for r in training_rows(recipe, name)} for name in ("sft", "pairs")
    )
    assert sft == {"0"} and kept == {"1", "2"}
    assert len(training_rows(recipe, "sft")) + len(training_rows(recipe, "pairs")) == recipe_rows(recipe)
    alone = load_recipe(run="alone", overrides={"data.sources": sources[1:], "data.for_pairs": 0})
    prepare(alone)
    with pytest.raises(UserError, match="no train row is for sft"):
        training_rows(alone, "sft")


def recipe_rows(recipe) -> int:
    return data_stage(recipe).result["rows"]["train"]

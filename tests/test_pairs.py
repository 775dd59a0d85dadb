"""Preference pairs are right on one side and wrong on the other, whatever they are made of."""

from __future__ import annotations

import json

import datasets
import pytest
import yaml

from school_geometry.problems import problems
from tunebook.checkers.maths import verify
from tunebook.data.prepare import data_stage, prepare
from tunebook.data.storage import read_parquet, training_rows, write_parquet
from tunebook.generation.answers import Answer
from tunebook.pairs.injected_error import injected_error
from tunebook.pairs.on_policy import build, on_policy
from tunebook.pairs.pair import COLUMNS, check_sample
from tunebook.pairs.pairs import _rows, _split, _why_none, pairs, pairs_stage
from tunebook.pairs.shortcuts import format_only, told_apart
from tunebook.pairs.summary import summary
from tunebook.pairs.work import Work
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import PairsConfig

RIGHT = "### Solution\n1. 2 + 3 = 5\n### Final Answer\n\\boxed{5}"
WRONG = RIGHT.replace("5", "6")
POISON = {
    "": False,
    "Error: API call failed": False,
    "GENERATION_ERROR": False,
    "### Solution\n1. 2 + 3 = 6\n### Final Answer\n6": False,  # no box
    "### Solution\n1. 2 + 3 = 6\n### Final Answer\n\\boxed{}": False,
    "the answer is \\boxed{6}": False,  # not the format of chosen
    WRONG: True,  # cut off
}


def sample(text: str, truncated: bool = False, tokens: int = 20, gold: str = "5") -> dict:
    return {
        "text": text,
        "tokens": tokens,
        "truncated": truncated,
        "seed": 0,
        "verdict": check_sample(text, gold, truncated, RIGHT),
    }


def made(config: PairsConfig, rows: list[dict], samples: list[dict]) -> list[dict]:
    return build(config, rows, samples, lambda text: 20)


ROW = {
    "source_id": "row/1",
    "gold": "5",
    "prompt": [{"role": "user", "content": "2 + 3?"}],
    "completion": [{"role": "assistant", "content": RIGHT}],
    "tokens": 60,
}


@pytest.mark.parametrize(("text", "truncated"), POISON.items())
def test_a_poisoned_sample_is_on_neither_side(text, truncated):
    config = PairsConfig(samples=2)
    assert made(config, [ROW], [sample(RIGHT), sample(text, truncated)]) == []
    assert made(config, [ROW], [sample(text, truncated), sample(WRONG)]) == []
    if truncated:
        assert made(config, [ROW], [sample(RIGHT, True), sample(WRONG)]) == []


def test_always_right_or_always_wrong_gives_no_pair():
    config = PairsConfig(samples=2)
    assert made(config, [ROW], [sample(RIGHT), sample(RIGHT.replace("2 + 3", "3 + 2"))]) == []
    assert made(config, [ROW], [sample(WRONG), sample(RIGHT.replace("5", "7"))]) == []
    (pair,) = made(PairsConfig(samples=2, reference_chosen=True), [ROW], [sample(WRONG), sample(WRONG)])
    assert (pair["strategy"], pair["chosen"][0]["content"]) == ("reference", RIGHT)


def test_length_ratio_near_duplicates_and_pairs_a_prompt():
    own = [
        sample(RIGHT),
        sample(RIGHT.replace("1. 2", "1. So 2")),
        sample(WRONG),
        sample(RIGHT.replace("5", "7"), tokens=90),
    ]
    config = PairsConfig(samples=4, max_length_ratio=2.0)
    (pair,) = made(config, [ROW], own)
    assert pair["rejected"][0]["content"] == WRONG
    wide = config.model_copy(update={"max_length_ratio": 9.0})
    assert len(made(wide, [ROW], own)) == 1
    two = wide.model_copy(update={"per_prompt": 2})
    pairs_ = made(two, [ROW], own)
    assert len({p["rejected"][0]["content"] for p in pairs_}) == len(pairs_) == 2
    assert {p["chosen"][0]["content"] for p in pairs_} == {
        RIGHT
    }  # which shares more of its beginning with both than "So 2" does
    same = [
        sample(RIGHT),
        sample(WRONG),
        sample(WRONG.replace("\n1.", "\n\n1.").replace("Solution", "SOLUTION")),
    ]
    assert (
        len(made(two.model_copy(update={"samples": 3}), [ROW], same)) == 1
    )  # two layouts of one text count once


def test_every_pair_verifies_again_from_its_own_columns():
    rows, samples = [], []
    for p in problems("train", 200):
        rows.append(
            ROW
            | {
                "source_id": p.id,
                "gold": p.answer,
                "completion": [{"role": "assistant", "content": p.solution}],
            }
        )
        wrong = p.solution.replace(f"boxed{{{p.answer}}}", "boxed{1234}")
        samples += [sample(t, gold=p.answer) for t in (p.solution, wrong)]
    found = made(PairsConfig(samples=2), rows, samples)
    assert len(found) == 200
    for pair in found:
        assert (
            verify(pair["chosen"][0]["content"], pair["gold"], boxed_only=True).correct
            is pair["chosen_correct"]
            is True
        )
        assert (
            verify(pair["rejected"][0]["content"], pair["gold"], boxed_only=True).correct
            is pair["rejected_correct"]
            is False
        )


def test_shortcuts_are_seen():
    assert told_apart([(10, 20), (11, 22), (5, 5), (9, 8)]) == 0.625
    assert told_apart([(1, 1)] * 4) == 0.5
    plain = made(PairsConfig(samples=2), [ROW], [sample(RIGHT), sample(WRONG)])
    assert set(format_only(plain).values()) == {0.5}
    shouting = made(PairsConfig(samples=2), [ROW], [sample(RIGHT), sample(WRONG.replace("1. ", "1. **"))])
    assert next(iter(format_only(shouting).items())) == ("punctuation", 1.0)
    record = {
        "rows": {"train": 1, "val": 0},
        "strategies": {},
        "tokens": {"chosen": 1, "rejected": 1},
        "length_only_accuracy": 0.5,
    }
    cells = list(summary(record | {"format_only_accuracy": format_only(shouting)}).columns[1].cells)
    assert (
        cells[-1].startswith("100% (above 70%: look at the pairs")
        and cells[-2] == "50% (near 50% is healthy)"
    )


def work_of(answers: list[str], rows: int, monkeypatch, **given) -> Work:
    """What is left when a model has answered so."""
    config = {"pairs.samples": 4, "pairs.max_length_ratio": 2.0, "pairs.reference_chosen": False} | given
    recipe = load_recipe(overrides=config)
    work = Work(
        recipe,
        [ROW | {"source_id": f"row/{i}"} for i in range(rows)],
        ROOT,
        lambda: None,
        lambda text: len(text) // 2,
        1,
    )

    def answer_file(path, source, prompts, sampling, record, label, shown):
        return [
            {"index": i} | record(i, Answer(text, len(text) // 2, False)) for i, text in enumerate(answers)
        ]

    for module in ("on_policy", "injected_error"):
        monkeypatch.setattr(f"tunebook.pairs.{module}.answer_file", answer_file)
    return work


def test_every_prompt_has_a_pair_or_a_reason(monkeypatch):
    long = WRONG.replace("2 + 3", "2 + 3" + " + 0" * 30)
    work = work_of(
        [RIGHT, WRONG, "?", "?"] + [RIGHT] * 4 + [WRONG] * 4 + [RIGHT, long, "?", ""], 4, monkeypatch
    )
    assert len(on_policy(work)) == 1
    assert work.record["prompts"] == {
        "paired": 1,
        "never wrong": 1,
        "never right": 1,
        "lengths too far apart": 1,
    }
    work = work_of([WRONG, RIGHT, "?", long], 4, monkeypatch, **{"pairs.strategies": ["process_error"]})
    assert len(injected_error(work)) == 1
    assert work.record["error_prompts"] == {
        "paired": 1,
        "the same text": 1,
        "broken": 1,
        "lengths too far apart": 1,
    }


def test_what_the_trainer_would_cut_is_in_no_pair(monkeypatch):
    """The row has 60 tokens, 26 of them its solution's; an answer may have 4 more."""
    assert len(RIGHT) // 2 == 26
    fits, long = WRONG + "." * 8, WRONG + "." * 10
    answers, limit = (
        [RIGHT, fits, RIGHT, long, RIGHT + "." * 10, fits, "?", long],
        {"pairs.samples": 2, "model.max_seq_length": 64},
    )
    work = work_of(answers, 4, monkeypatch, **limit)
    (pair,) = on_policy(work)
    assert pair["rejected"][0]["content"] == fits
    assert work.record["prompts"] == {"too long": 3, "paired": 1}
    assert work.record["samples"] == {"too long": 3, "right": 2, "wrong": 2, "broken": 1}
    work = work_of([fits, long], 2, monkeypatch, **limit)
    (pair,) = injected_error(work)
    assert pair["rejected"][0]["content"] == fits and work.record["error_prompts"] == {
        "paired": 1,
        "too long": 1,
    }
    assert _why_none({"samples": work.record["errors"] | {"too long": 9}}).endswith(
        "9 are too long; raise model.max_seq_length"
    )


def test_a_collapsed_model_is_noticed_while_it_answers(monkeypatch):
    with pytest.raises(
        UserError, match=r"32 of 32 answers repeat one piece of text to their end.*lower learning_rate"
    ):
        on_policy(work_of(["So 7 " + "7 " * 40] * 40, 10, monkeypatch))
    on_policy(work_of(["So 7 " + "7 " * 40, WRONG] * 20, 10, monkeypatch))  # half of them: a weak model


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


def test_rounds_take_the_next_prompts_and_start_again(monkeypatch):
    from tunebook.runs.stages import policy_name, round_name

    monkeypatch.setattr(
        "tunebook.pairs.pairs.training_rows", lambda recipe, stage: [{"gold": str(i)} for i in range(5)]
    )
    recipe = load_recipe(overrides={"pairs.prompts": 2})
    assert [[r["gold"] for r in _rows(recipe, n)] for n in (1, 2, 3)] == [["0", "1"], ["2", "3"], ["4", "0"]]
    assert len(_rows(load_recipe(overrides={"pairs.prompts": 99}), 2)) == 5
    assert [(round_name("dpo", n), policy_name(n)) for n in (1, 2, 3)] == [
        ("dpo", "sft"),
        ("dpo-2", "dpo"),
        ("dpo-3", "dpo-2"),
    ]


def test_mistakes_in_the_recipe_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"pairs: the method `dataset` needs pairs\.dataset"):
        load_recipe(overrides={"pairs.methods": ["dataset"]})
    with pytest.raises(
        UserError, match=r"pairs\.methods\.0: should be 'on_policy', 'injected_error' or 'dataset'"
    ):
        load_recipe(overrides={"pairs.methods": ["onpolicy"]})
    with pytest.raises(UserError, match="run `uv run tunebook dpo --round 2` first"):
        pairs(load_recipe(), 3)


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


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
    (GOOD | {"prompt": "C", "rejected": "GENERATION_ERROR"}, "error text or refusal"),
    (GOOD | {"prompt": "D", "score_chosen": 4, "score_rejected": 4}, "scored no better"),
    (GOOD | {"prompt": "E", "chosen": messages("E", "x"), "rejected": messages("F", "y")}, "schema"),
    ({"prompt": "G", "chosen": "x"}, "schema"),
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
    content = yaml.safe_load((ROOT / "configs" / "smollm2-math.yaml").read_text())
    content |= {"pairs": {"methods": ["dataset"], "dataset": str(path), "val": 0}}
    content["data"]["for_pairs"] = 0
    content["data"]["sources"] = [{"format": "geometry", "train": 5, "val": 2, "test": 6}]
    (tmp_path / "set.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe(tmp_path / "set.yaml")
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
    assert record["quarantined"]["schema"] == 2 and record["strategies"] == {"dataset": 6}


def test_all_pairs_of_a_prompt_are_in_one_split():
    found = [
        {
            "prompt": messages(f"Question {i // 3}" + "?" * (i % 3)),
            "source_id": f"set:{i}",
            "images": [],
            "n": i // 3,
        }
        for i in range(300)
    ]
    split = _split(found, 0.2)
    sides = [{p["n"] for p in part} for part in split.values()]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(range(100)) and 10 < len(sides[1]) < 30
    assert len(split["train"]) + len(split["val"]) == 300
    alone = [p for p in found if p["source_id"] in {f"set:{i}" for i in range(0, 300, 3)}]
    assert _split(alone, 0.2)["val"] == [
        p for p in alone if p["n"] in sides[1]
    ]  # further pairs of a prompt move none
    pictured = [p | {"images": [f"{p['source_id']}.png"]} for p in found]  # another picture, another prompt
    assert (
        len({p["n"] for p in _split(pictured, 0.2)["train"]} & {p["n"] for p in _split(pictured, 0.2)["val"]})
        > 20
    )


@pytest.fixture(scope="session")
def taught(tmp_path_factory, embedded):
    """The embedded model after a few steps on a handful of sums: at a high temperature it is right now and then."""
    from _pytest.monkeypatch import MonkeyPatch

    from tunebook.training.sft import sft

    folder = tmp_path_factory.mktemp("taught")
    sums = [(a, b) for a in (12, 23, 34) for b in (5, 17, 48)]
    rows = [
        {
            "prompt": f"What is {a} + {b}?",
            "completion": f"### Solution\n1. {a} + {b} = {a + b}\n### Final Answer\n\\boxed{{{a + b}}}",
            "answer": str(a + b),
        }
        for a, b in sums
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = yaml.safe_load((ROOT / "configs" / "smollm2-math.yaml").read_text())
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    recipe = load_recipe(overrides={"data.sources": sources})
    prepare(recipe)
    sft, kept = (
        {r["source_id"].rsplit("/", 1)[1] for r in training_rows(recipe, name)} for name in ("sft", "pairs")
    )
    assert sft == {"0"} and kept == {"1", "2"}
    assert len(training_rows(recipe, "sft")) + len(training_rows(recipe, "pairs")) == recipe_rows(recipe)
    alone = load_recipe(run="alone", overrides={"data.sources": sources[1:]})
    prepare(alone)
    with pytest.raises(UserError, match="no train row is for sft"):
        training_rows(alone, "sft")


def recipe_rows(recipe) -> int:
    return data_stage(recipe).result["rows"]["train"]


def test_what_rejected_changes_is_marked_by_the_word():
    from tunebook.pairs.shortcuts import marked

    pair = {
        "chosen": [{"content": "9 * 14 = 126\n\\boxed{126}"}],
        "rejected": [{"content": "9 * 14 = 116\n\\boxed{116}"}],
    }
    assert [part for part, new in marked(pair) if new] == ["116", "116"]
    assert "".join(part for part, _ in marked(pair)) == "9 * 14 = 116\n\\boxed{116}"

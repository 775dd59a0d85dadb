"""Preference pairs are right on one side and wrong on the other, whatever they are made of."""

from __future__ import annotations

import pytest
from pair_rows import RIGHT, ROW, WRONG, made, messages, sample

from school_geometry.problems import problems
from tunebook.checkers.maths import verify
from tunebook.data import rows
from tunebook.generation.answers import Answer
from tunebook.pairs import existing
from tunebook.pairs.injected_error import injected_error
from tunebook.pairs.on_policy import on_policy
from tunebook.pairs.pairs import _rows, _split, _why_none, pairs
from tunebook.pairs.shortcuts import format_only, shortcut_accuracy
from tunebook.pairs.summary import summary
from tunebook.pairs.work import Work, count_verdicts
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import PairsConfig

POISON = {
    "": False,
    "Error: API call failed": False,
    "GENERATION_ERROR": False,
    "### Solution\n1. 2 + 3 = 6\n### Final Answer\n6": False,  # no box
    "### Solution\n1. 2 + 3 = 6\n### Final Answer\n\\boxed{}": False,
    "the answer is \\boxed{6}": False,  # not the format of chosen
    WRONG: True,  # cut off
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
    assert shortcut_accuracy([(10, 20), (11, 22), (5, 5), (9, 8)]) == 0.625
    assert shortcut_accuracy([(1, 1)] * 4) == 0.5
    plain = made(PairsConfig(samples=2), [ROW], [sample(RIGHT), sample(WRONG)])
    assert set(format_only(plain).values()) == {0.5}
    shouting = made(PairsConfig(samples=2), [ROW], [sample(RIGHT), sample(WRONG.replace("1. ", "1. **"))])
    assert next(iter(format_only(shouting).items())) == ("punctuation", 1.0)
    record = {
        "settings": {"pairs": {"methods": ["on_policy"]}},
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

    def answer_file(path, source, prompts, sampling, record, label, shown, usage, before):
        return [
            {"index": i} | record(i, Answer(text, len(text) // 2, False)) for i, text in enumerate(answers)
        ]

    monkeypatch.setattr("tunebook.pairs.work.answer_file", answer_file)
    monkeypatch.setattr("tunebook.pairs.work.drop_other_answers", lambda *given: None)
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
    # What is cut off is said as such: of the others more tokens bring nothing.
    samples = [sample(WRONG, True), sample(""), sample(WRONG, True), sample(RIGHT)]
    assert count_verdicts(samples) == {"cut off": 2, "broken": 1, "right": 1}
    assert _why_none({"samples": {"wrong": 6, "cut off": 4, "broken": 2}}) == (
        ": of 12 samples 6 are wrong, 4 are cut off, 2 are broken (empty, an error text, or without a final "
        "answer in the form of the rows); raise pairs.max_new_tokens, or train SFT longer"
    )
    assert _why_none({"samples": {"wrong": 6, "broken": 6}}).endswith(
        "; train SFT longer: answers do not end as those of the rows do"
    )
    assert _why_none({"samples": work.record["errors"] | {"too long": 9}}).endswith(
        "9 are too long; raise model.max_seq_length"
    )


def test_a_collapsed_model_is_noticed_while_it_answers(monkeypatch):
    with pytest.raises(
        UserError, match=r"32 of 32 answers repeat one piece of text to their end.*lower learning_rate"
    ):
        on_policy(work_of(["So 7 " + "7 " * 40] * 40, 10, monkeypatch))
    on_policy(work_of(["So 7 " + "7 " * 40, WRONG] * 20, 10, monkeypatch))  # half of them: a weak model


def test_rounds_take_the_next_prompts_and_start_again(monkeypatch):
    from tunebook.runs.stages import policy_name, round_name

    monkeypatch.setattr(
        "tunebook.pairs.pairs.training_rows", lambda recipe, stage: [{"gold": str(i)} for i in range(5)]
    )
    recipe = load_recipe(overrides={"pairs.prompts": 2})
    assert [[r["gold"] for r in _rows(recipe, n)] for n in (1, 2, 3)] == [["0", "1"], ["2", "3"], ["4", "0"]]
    assert len(_rows(load_recipe(overrides={"pairs.prompts": 99}), 2)) == 5
    assert [(round_name("dpo", n), policy_name(recipe, n)) for n in (1, 2, 3)] == [
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


def test_what_rejected_changes_is_marked_by_the_word():
    from tunebook.pairs.shortcuts import marked

    pair = {
        "chosen": [{"content": "9 * 14 = 126\n\\boxed{126}"}],
        "rejected": [{"content": "9 * 14 = 116\n\\boxed{116}"}],
    }
    assert [part for part, new in marked(pair) if new] == ["116", "116"]
    assert "".join(part for part, _ in marked(pair)) == "9 * 14 = 116\n\\boxed{116}"


def test_rejected_is_the_wrong_answer_that_is_given_most_often():
    """Two say 7, once as 14/2; 6 is said once, and begins more like the right answer."""
    near = RIGHT.replace("\\boxed{5}", "\\boxed{6}")
    far = RIGHT.replace("2 + 3 = 5", "it is seven").replace("\\boxed{5}", "\\boxed{7}")
    other = RIGHT.replace("2 + 3 = 5", "one finds").replace("\\boxed{5}", "\\boxed{14/2}")
    samples = [sample(text) for text in (near, RIGHT, far, other)]
    assert [each["verdict"] for each in samples] == ["wrong", "right", "wrong", "wrong"]
    for rule, rejected in (("nearest", near), ("most_frequent", far)):
        (pair,) = made(PairsConfig(samples=4, rejected=rule), [ROW], samples)
        assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (RIGHT, rejected)


FIRST = "### Solution\n1. 2 and 3\n2. add them\n"
CORRECT = FIRST + "3. 2 + 3 = 5\n4. done\n### Final Answer\n\\boxed{5}"
ERROR = FIRST + "3. 2 + 3 = 6\n4. done\n### Final Answer\n\\boxed{6}"


def test_the_first_pit_is_the_line_after_which_all_continuations_fail(monkeypatch):
    """A scripted model: from three lines of ERROR it may still end right, with the fourth no more."""
    asked = []
    files = []

    def answer_file(path, source, prompts, sampling, record, label, shown, usage, before):
        files.append(path.name)
        found = []
        for i, prompt in enumerate(prompts):
            if prompt[-1]["role"] == "user":
                text = [ERROR, CORRECT, ERROR, ERROR][i]
            else:
                beginning = prompt[-1]["content"]
                assert ERROR.startswith(beginning) and prompt[:-1] == ROW["prompt"]
                asked.append(beginning.count("\n"))
                # One of its two continuations is right, as long as one can be.
                ends_right = "= 6" not in beginning and i % 2
                text = (CORRECT if ends_right else ERROR)[len(beginning) :]
            found.append({"index": i} | record(i, Answer(text, len(text) // 2, False)))
        assert len(set(sampling.seeds)) == len(prompts)
        return found

    work = work_of([], 2, monkeypatch, **{"pairs.samples": 2, "pairs.first_pit": 2})
    monkeypatch.setattr("tunebook.pairs.work.answer_file", answer_file)
    # The second row is never answered right: nothing is looked for there.
    (pair,) = on_policy(work)
    assert asked == [3, 3, 5, 5, 4, 4]
    assert files == ["samples.jsonl", "pits-1.jsonl", "pits-2.jsonl", "pits-3.jsonl"]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == (CORRECT, ERROR)
    assert (pair["strategy"], pair["chosen_tokens"]) == ("first_pit", len(CORRECT) // 2)
    assert pair["chosen_correct"] and not pair["rejected_correct"]
    assert work.record["first_pit"] == {"searched": 1, "rounds": 3}
    assert work.record["prompts"] == {"paired": 1, "never right": 1}


def test_pits_are_looked_for_with_the_local_model_alone():
    server = {"url": "http://x/v1", "model": "m"}
    with pytest.raises(UserError, match="first_pit continues answers with the local model"):
        load_recipe(overrides={"pairs.first_pit": 4, "pairs.server": server})


def test_a_pair_that_is_put_aside_keeps_both_sides_and_names_the_one():
    """Else it cannot be put back."""
    pair = {"source_id": "p:1", "prompt": [{"role": "user", "content": "?"}], "images": []}
    pair |= {"chosen": [{"role": "assistant", "content": "Yes."}]}
    pair |= {"rejected": [{"role": "assistant", "content": "No, " * 9}]}

    def too_long(row):
        if len(row.completion[0]["content"]) > 20:
            return rows.rejected(row, "too long", "36 letters")
        return None

    reject = existing._first_reject(existing._rows(pair), [too_long])
    assert (reject.reason, reject.detail) == ("too long", "rejected: 36 letters")
    whole = existing._of_pair(reject, pair)
    assert whole.row == {name: pair[name] for name in ("prompt", "chosen", "rejected")}

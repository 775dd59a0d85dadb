"""Sources and checks: broken rows end in the quarantine with the right reason, and the rest trains."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.data import checks, formats, records, similarity, sources
from tunebook.data.prepare import prepare
from tunebook.data.rows import Reject, Row
from tunebook.data.storage import load
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe

prepare_module = sys.modules["tunebook.data.prepare"]
GOOD = "### Solution\n1. {a} + {b} = {s}\n### Final Answer\n\\boxed{{{s}}}"


def question(i: int) -> str:
    themes = [
        "apples in a basket",
        "coins in a jar",
        "birds on a wire",
        "pages of a book",
        "steps of a tower",
    ]
    return f"Story {i}: there are {i} {themes[i % 5]} and {2 * i + 1} more arrive before noon on day {i * 7}. How many are there then?"


def good(i: int) -> dict:
    return {
        "prompt": question(i),
        "completion": GOOD.format(a=i, b=2 * i + 1, s=3 * i + 1),
        "answer": str(3 * i + 1),
    }


@pytest.fixture
def chat(tmp_path):
    """A chat recipe over a JSONL file with two rows of every kind of broken input among good ones; (recipe path, lines)."""
    test = [good(i) for i in range(100, 110)]
    lines: list[bytes] = [json.dumps(good(i)).encode() for i in range(1, 41)]
    broken = {
        "bad JSON": [b'{"prompt": "x", ', b"not json"],
        "schema": [
            json.dumps({"prompt": "only a prompt"}).encode(),
            json.dumps({"messages": [{"role": "user", "content": "no answer"}]}).encode(),
        ],
        "empty completion": [
            json.dumps(good(51) | {"completion": ""}).encode(),
            json.dumps(good(52) | {"completion": " \n"}).encode(),
        ],
        "wrong answer": [
            json.dumps(good(53) | {"answer": "1"}).encode(),
            json.dumps(good(54) | {"completion": "no box, 17"}).encode(),
        ],
        "too long": [
            json.dumps(good(i) | {"completion": "word " * 600 + good(i)["completion"]}).encode()
            for i in (55, 56)
        ],
        "not UTF-8": [b'{"prompt": "caf\xe9", "completion": "x"}', b"\xff\xfe{}"],
        "in the test or val split": [
            json.dumps(
                good(1) | {"prompt": test[0]["prompt"]} | {k: test[0][k] for k in ("completion", "answer")}
            ).encode(),
            json.dumps(
                good(1)
                | {
                    "prompt": "Please solve. " + test[1]["prompt"],
                    **{k: test[1][k] for k in ("completion", "answer")},
                }
            ).encode(),
        ],
        "error text or refusal": [
            json.dumps({"prompt": f"q {w}", "completion": w}).encode()
            for w in ("Error: API call failed", "GENERATION_ERROR")
        ],
        "duplicate": [json.dumps(good(2)).encode(), json.dumps(good(3)).encode()],
    }
    for i, bad in enumerate(broken.values()):
        lines[i * 3 : i * 3] = (
            bad  # scattered; copies of rows 2 and 3 come before or after them, one of each stays
        )
    train_path, test_path = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train_path.write_bytes(b"\n".join(lines) + b"\n")
    test_path.write_text("".join(json.dumps(row) + "\n" for row in test))
    content = yaml.safe_load((ROOT / "configs" / "smollm2-math.yaml").read_text())
    content["name"] = "chat"
    content["data"]["for_pairs"] = 0
    content["data"]["sources"] = [
        {"format": "chat", "path": str(train_path), "split": "train"},
        {"format": "chat", "path": str(test_path), "split": "test"},
    ]
    path = tmp_path / "chat.yaml"
    path.write_text(yaml.safe_dump(content))
    return path, len(lines), {reason: 2 for reason in broken}


def test_broken_rows_end_in_the_quarantine_and_the_rest_trains(chat, embedded):
    path, lines, expected = chat
    recipe = load_recipe(path)
    record = prepare(recipe)
    rejects = [
        json.loads(line) for line in (recipe.run_dir / "data" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert Counter(r["reason"] for r in rejects) == expected == record["quarantined"]
    assert record["rows"] == {"train": 40, "val": 0, "test": 10}
    assert record["rows"]["train"] + len(rejects) == lines  # none lost
    by_reason = {r["reason"]: r for r in rejects}
    assert "missing" in next(r["detail"] for r in rejects if r["reason"] == "schema")
    assert by_reason["bad JSON"]["source_id"].startswith("train.jsonl:")
    assert load(recipe, "train")[0]["completion"][0]["content"].startswith("### Solution")
    assert load(recipe, "train")[0]["prompt"][0] == {
        "role": "system",
        "content": "Solve the problem. Put the final answer in \\boxed{}.",
    }


def test_the_row_number_is_the_line_in_the_file(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(good(1)).encode() + b"\n\n{broken\n")
    rows = list(records._jsonl(path))
    assert [n for n, _ in rows] == [1, 3]
    assert isinstance(rows[1][1], Reject)
    assert rows[1][1].source_id == "x.jsonl:3"


def test_same_recipe_same_fingerprint_in_every_process(embedded, tmp_path):
    code = (
        "from tunebook.recipe.loading import load_recipe; from tunebook.data.prepare import prepare\n"
        "r = load_recipe(overrides={'data.sources': [{'format': 'geometry', 'train': 60, 'val': 9, 'test': 30}]})\n"
        "print(prepare(r, force=True)['fingerprints'])"
    )
    outs = set()
    for hash_seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "TUNEBOOK_RUNS": str(tmp_path / hash_seed)}
        outs.add(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
            ).stdout.splitlines()[-1]
        )
    assert len(outs) == 1


def test_unchanged_data_is_not_prepared_again_and_an_edited_file_is(chat, embedded):
    path, _, _ = chat
    recipe = load_recipe(path)
    first = prepare(recipe)
    assert prepare(recipe)["started"] == first["started"]
    assert prepare(recipe)["key"] == first["key"]
    source = recipe.data.sources[1].path
    with open(source, "a") as file:  # noqa: PTH123
        file.write(json.dumps(good(111)) + "\n")
    assert prepare(load_recipe(path))["rows"]["test"] == 11


def test_no_row_left_is_one_clear_line(tmp_path, embedded):
    data = tmp_path / "bad.jsonl"
    data.write_text("{}\n")
    with pytest.raises(UserError, match=r"no training row is left: 1 schema \(the first: "):
        prepare(
            load_recipe(overrides={"data.sources": [{"format": "chat", "path": str(data), "split": "train"}]})
        )
    (tmp_path / "bad.parquet").write_text("PAR1 not")
    for path, message in (
        (tmp_path / "bad.parquet", "cannot read"),
        ("rows.xlsx", "give a .jsonl, .json, .parquet, .csv file or a hub id"),
        ("no-such/hub-id", "cannot read"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(load_recipe(overrides={"data.sources": [{"format": "chat", "path": str(path)}]}))
    with pytest.raises(UserError, match=r"no file nowhere\.jsonl"):
        prepare(load_recipe(overrides={"data.sources": [{"format": "chat", "path": "nowhere.jsonl"}]}))


def test_parquet_is_read_like_jsonl(tmp_path, embedded):
    import datasets

    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([good(i) for i in range(1, 30)]).to_parquet(path)
    record = prepare(
        load_recipe(
            overrides={"data.sources": [{"format": "chat", "path": str(path), "val": 0.2, "test": 0.2}]}
        )
    )
    assert sum(record["rows"].values()) == 29
    assert all(record["rows"].values())


def make(text: str, source_id: str = "x", completion: str = "a") -> Row:
    return Row(
        source_id,
        "train",
        [{"role": "user", "content": text}],
        [{"role": "assistant", "content": completion}],
    )


def test_other_numbers_make_another_problem_in_the_same_words():
    text = "In triangle ABC, angle A is {}° and angle B is {}°. Find angle C of the triangle and give it in degrees."
    seen = similarity.Duplicates(0.9)
    assert seen.check(make(text.format(50, 60), "first")) is None
    assert seen.check(make(text.format(50, 70))) is None
    assert seen.check(make(text.format(50, 60).upper())).reason == "duplicate"
    near = seen.check(make(text.format(50, 60) + " Thanks"))
    assert (near.reason, near.detail) == ("near-duplicate", "of first")
    held_out = similarity.Contamination(0.6, [make(text.format(50, 60), "test item")])
    assert held_out.check(make(text.format(50, 70))) is None
    assert (
        held_out.check(make("Solve this, please: " + text.format(50, 60))).reason
        == "in the test or val split"
    )
    assert (
        held_out.check(make("A textbook", completion="As in: " + text.format(50, 60) + " We get 70.")).reason
        == "in the test or val split"
    )


def test_short_and_wordless_questions_are_compared_whole():
    held_out = similarity.Contamination(0.6, [make("What is 2 + 3?")])
    assert held_out.check(make("What is 2 + 3?")) is not None
    assert held_out.check(make("What is 2 + 4?")) is None
    assert [
        len(grams) for grams in similarity.ngram_hashes(["", "One two!", "1 2 3 4 5 6 7 8 9", "one, two"], 8)
    ] == [1, 1, 2, 1]
    hashes = similarity.ngram_hashes(["a b c d", "x a b c", "A B, c D"], 3)
    assert hashes[0].tolist() == hashes[2].tolist() and hashes[0][0] == hashes[1][1]
    assert held_out.check(make("")) is None and similarity.Contamination(0.6, []).check(make("")) is None


def test_a_short_question_is_found_inside_a_longer_text():
    questions = [
        "What is 12 times 13?",
        "Why do we have leap years?",
        "Name the four seasons.",
        "Why?",
        "What is 7?",
        "Add 2 and 3 then divide by 5.",
    ]
    held_out = similarity.Contamination(0.6, [make(text, text) for text in questions])
    assert held_out.lengths == {4, 5, 6, 8}
    cases = [
        (make("Please tell me: what is 12 times 13?"), questions[0]),
        (make("A textbook", completion="It asks: What is 12 times 13? We get 156."), questions[0]),
        (make("Please tell me: what is 12 times 14, not 13?"), None),
        (make("Please tell me: what is 13 times 12?"), None),
        (make("What is 12 times"), None),
        (make("In one sentence, please: why do we have leap years at all?"), questions[1]),
        (make("Why do we have years and not a leap?"), None),
        (make("name the four seasons, and say when each begins"), questions[2]),
        (
            make("Why? Give three reasons, the best one first, and say what follows."),
            None,
        ),  # too common a phrase: only the same text counts
        (make("why"), questions[3]),
        (make("What is 7 plus 8?"), None),
        (make("What is 7?!"), questions[4]),
        (make("First: add 2 and 3, then divide by 5, please."), questions[5]),
    ]
    rows = [row for row, _ in cases]
    found = held_out.check_all(rows)
    assert [reject and reject.detail.partition(" n-grams of ")[2] for reject in found] == [
        question for _, question in cases
    ]
    assert [bool(held_out.check(row)) for row in rows] == [bool(question) for _, question in cases]


def jaccard(a: str, b: str) -> float:
    """By the definition, on strings: the reference for the hashes."""
    sets = [
        {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
        for words in (similarity.words(a), similarity.words(b))
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_near_duplicates_are_those_of_the_definition():
    """Of 300 texts with more and more words changed, those above the threshold, and `alike` misses none of them."""
    rng = random.Random(0)
    vocabulary = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)]
    originals = [rng.choices(vocabulary, k=60) for _ in range(10)]
    texts = [" ".join(words) for words in originals]
    for words in originals:
        for k in range(29):
            texts.append(
                " ".join(rng.choice(vocabulary) if rng.random() < k / 200 else word for word in words)
            )
    rows = [make(text, str(i)) for i, text in enumerate(texts)]
    suspects = set(similarity.alike(similarity.signatures(rows, 0.9)))
    seen, kept = similarity.Duplicates(0.9), []
    for i, row in enumerate(rows):
        expected = next((j for j in kept if jaccard(texts[i], texts[j]) >= 0.9), None)
        reject = seen.check(row)
        assert (reject is None) == (expected is None), (i, expected)
        assert expected is None or i in suspects
        if expected is None:
            kept.append(i)
    assert 100 < len(kept) < 290


def test_the_same_rows_every_time(chat, embedded):
    path, lines, expected = chat
    runs = []
    for _ in range(2):
        recipe = load_recipe(path)
        record = prepare(recipe, force=True)
        data = recipe.run_dir / "data"
        assert sum(record["rows"].values()) + sum(record["quarantined"].values()) == lines + 10
        assert record["quarantined"] == expected
        rows = [load(recipe, split).to_list() for split in ("train", "val", "test")]
        runs.append((rows, (data / "quarantine.jsonl").read_text(), record["fingerprints"]))
        assert sorted(p.name for p in data.iterdir()) == [
            "quarantine.jsonl",
            "stage.json",
            "test.parquet",
            "train.parquet",
            "val.parquet",
        ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "text",
    [
        "Error: API call failed",
        "GENERATION_ERROR",
        "I'm sorry, but I can't help with that.",
        "None",
        "I cannot answer this.",
    ],
)
def test_error_text_is_never_training_text(text):
    assert checks.check_content(make("question", completion=text)).reason == "error text or refusal"


@pytest.mark.parametrize(
    "text",
    [
        "The error is 3.",
        "None of the angles is right. \\boxed{0}",
        "Sorry states of matter",
        "I can see that x = 3.",
    ],
)
def test_answers_that_only_look_like_errors_stay(text):
    assert checks.check_content(make("question", completion=text)) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
)
fields = st.sampled_from(
    [
        "prompt",
        "completion",
        "messages",
        "answer",
        "slice",
        "system",
        "instruction",
        "input",
        "output",
        "conversations",
        "from",
        "value",
        "role",
        "content",
        "question",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            fields, json_values | st.lists(st.dictionaries(fields, json_values, max_size=3)), max_size=5
        )
        | json_values,
        max_size=5,
    ),
    st.sampled_from(sorted(formats.FORMATS)),
)
def test_any_json_is_a_row_or_a_reject(tmp_path_factory, values, form):
    path = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    recipe = load_recipe(overrides={"data.sources": [{"format": form, "path": str(path), "split": "train"}]})
    out = list(sources.read(recipe, recipe.run_dir / "images"))
    assert len(out) == len(values)
    for item in checks.accepted(out, [checks.check_content]):
        assert isinstance(item, Reject) or (item.completion[0]["content"].strip() and item.question.strip())

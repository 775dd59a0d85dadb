"""Inputs from real users' troubles (`tests/cases/data`), each with what a user would rightly expect.

`outcome.txt` says it in words, the tables here in numbers. The ten further ones are after public threads:
datasets#8241 (a byte order mark), LlamaFactory#2464 (ShareGPT with a system turn), LlamaFactory#2381 (a
role of one's own), LlamaFactory#2962 (two turns of one speaker), litgpt#204 (a comma after each row),
ChatGLM-6B#1196 (a row a line in a .json), easy-dataset#549 (Alpaca with and without input), axolotl#879
(Alpaca's columns under other names), polars#19078 (a line break in a cell), LlamaFactory#5866
(function_call).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tunebook.data import prepare
from tunebook.data.rows import Reject
from tunebook.pairs import existing
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe

CASES = Path(__file__).parents[1] / "cases" / "data"

# Of each case the rows that are kept, and how many are put aside for which reason.
ROWS = {
    "alpaca-json-wrapped": (6, {}),
    "alpaca-jsonl-array-in-jsonl": (6, {}),
    "alpaca-jsonl-gz": (6, {}),
    "alpaca-list-output": (0, {"wrong type": 4}),
    "alpaca-ndjson": (6, {}),
    "alpaca-number-output": (5, {}),
    "alpaca-tsv": (6, {}),
    "answer-word": (6, {}),
    "csv-excel-semicolon": (6, {}),
    "csv-header-spaces": (6, {}),
    "csv-latin1": (5, {}),
    "csv-utf16-tab": (6, {}),
    "de-contamination-control": (2, {"in the test or val split": 1}),
    "dup-arithmetic": (10, {}),
    "dup-arithmetic-split": (6, {}),
    "dup-prompt-solutions": (4, {}),
    "folder-of-jsonl": (6, {}),
    "glob-path": (6, {}),
    "lang-mixed": (10, {"empty prompt": 1, "empty completion": 1}),
    "lang-th-contamination": (6, {"in the test or val split": 1}),
    "lang-zh-contamination": (6, {"in the test or val split": 2}),
    "llama3-tokens-in-text": (3, {}),
    "openai-content-parts": (3, {}),
    "openai-developer-role": (3, {}),
    "openai-ends-with-user": (0, {"broken turns": 3}),
    "openai-multiturn": (4, {}),
    "openai-tools": (1, {"tools": 5}),
    "openai-weight": (4, {"weight 0": 2}),
    "prompt-response-answer-letter": (5, {}),
    "qa-mapped-mixed": (6, {}),
    "question-answer-columns": (5, {}),
    "refusal-like": (6, {}),
    "symbols-only-differ": (10, {}),
    "zh-contamination-long": (2, {"in the test or val split": 1}),
}
PAIRS = {
    "pref-chosen-dict": (6, {}),
    "pref-distilabel-tie": (0, {"tie": 6}),
    "pref-hh": (6, {}),
    "pref-kto": (6, {}),
    "pref-llamafactory-alpaca": (6, {}),
    "pref-markup-bbcode": (3, {}),
    "pref-multiturn-differ": (0, {"different prompts": 6}),
    "pref-openai": (6, {}),
    "pref-question-in-csv": (6, {}),
    "pref-refusal-rejected": (3, {}),
    "pref-templated-inst": (6, {}),
    "pref-tools": (0, {"tools": 6}),
    "pref-trl-implicit": (6, {}),
    "pref-trl-implicit-text": (6, {}),
    "pref-ultrafeedback-raw": (6, {}),
}


def recipe_of(case: str, folder: Path, **keys):
    """The case's files in a folder of their own, with its recipe over the family default."""
    place = folder / case
    shutil.copytree(CASES / case, place)
    content = yaml.safe_load((place / "recipe.yaml").read_text())
    (place / "mine.yaml").write_text(yaml.safe_dump({"extends": "smollm2", **content}))
    return load_recipe(place / "mine.yaml", overrides=keys)


def test_every_case_is_in_a_table():
    # The one that is compressed with zstd is made here: its content is that of the others.
    assert {path.name for path in CASES.iterdir()} == {*ROWS, *PAIRS, "alpaca-jsonl-zst"}


@pytest.mark.parametrize("case", ROWS)
def test_rows_of_a_case(case, tmp_path, embedded, capsys):
    kept, aside = ROWS[case]
    recipe = recipe_of(case, tmp_path, **{"data.max_aside": 1})
    if not kept:
        reason, count = next(iter(aside.items()))
        with pytest.raises(UserError, match=f"no training row is left: {count} {reason} ") as error:
            prepare.prepare(recipe)
        assert "\n" not in str(error.value)
        return
    record = prepare.prepare(recipe)
    assert (sum(record["rows"].values()), record["quarantined"]) == (kept, aside)
    prepare.show(record)
    last = capsys.readouterr().out
    total = kept + sum(aside.values())
    assert f"rows: {total} in, {kept} out, {sum(aside.values())} aside" in last
    foreign = "rows hold end tokens of another model (" in last
    assert foreign == (case == "llama3-tokens-in-text")


@pytest.mark.parametrize("case", PAIRS)
def test_pairs_of_a_case(case, tmp_path, embedded):
    recipe = recipe_of(case, tmp_path)
    pairs = []
    reasons = Counter()
    for item in existing.read(recipe, len, tmp_path / "images"):
        if isinstance(item, Reject):
            reasons[item.reason] += 1
        else:
            pairs.append(item)
    assert (len(pairs), dict(reasons)) == PAIRS[case]
    for pair in pairs:
        sides = [pair[side][0]["content"] for side in ("prompt", "chosen", "rejected")]
        assert all(side.strip() for side in sides) and sides[1] != sides[2]


def test_ten_more(tmp_path, embedded):
    """In the order of the threads in the docstring of this file."""
    plain = {"prompt": "Name a river.", "completion": "The Elbe."}
    other = {"prompt": "Name a hill.", "completion": "The Brocken."}

    def rows(text: str, name="rows.jsonl") -> tuple[int, dict[str, int]]:
        """How many rows of a file are kept, and how many are put aside for which reason."""
        path = tmp_path / name
        path.write_bytes(text.encode())
        source = {"path": str(path), "split": "train"}
        record = prepare.prepare(load_recipe(overrides={"data.sources": [source], "data.max_aside": 1}))
        return sum(record["rows"].values()), record["quarantined"]

    def lines(*objects) -> str:
        return "".join(json.dumps(item) + "\n" for item in objects)

    def sharegpt(*turns) -> dict:
        return {"conversations": [{"from": role, "value": text} for role, text in turns]}

    human, gpt = ("human", "Hi?"), ("gpt", "Hello.")
    assert rows("\ufeff" + lines(plain, other)) == (2, {})
    assert rows(lines(sharegpt(("system", "Be brief."), human, gpt), plain)) == (2, {})
    assert rows(lines(sharegpt(("hummany", "Hi?"), gpt), plain)) == (1, {"wrong role": 1})
    assert rows(lines(sharegpt(human, ("human", "Anyone?"), gpt), plain)) == (1, {"broken turns": 1})
    assert rows(lines(plain) + json.dumps(other) + ",\n") == (1, {"bad JSON": 1})
    assert rows(lines(plain, other), "rows.json") == (2, {})
    alpaca = {"instruction": "Translate.", "input": "Guten Tag.", "output": "Good day."}
    assert rows(
        lines(alpaca, {**alpaca, "input": ""}, {"instruction": "Name a sea.", "output": "Baltic."})
    ) == (
        3,
        {},
    )
    named = {"human": "Name a river.", "bot": "The Elbe."}
    assert rows(lines(plain, named)) == (1, {"unknown columns": 1})
    assert rows('prompt,completion\r\n"Two\r\nlines?","Yes.\r\nTwo."\r\n', "rows.csv") == (1, {})
    calls = sharegpt(human, ("function_call", '{"name": "f", "arguments": {}}'), ("observation", "1"), gpt)
    assert rows(lines(calls, plain)) == (1, {"tools": 1})

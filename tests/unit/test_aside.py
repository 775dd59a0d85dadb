"""What became of all rows is said in plain lines, and a stage that puts most of them aside stops."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from rich.console import Console
from story_rows import good

from tunebook.data import aside, prepare
from tunebook.data.rows import Reject, Row
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def row(completion: str) -> Row:
    return Row(
        "x", "train", [{"role": "user", "content": "q"}], [{"role": "assistant", "content": completion}]
    )


def prepared(tmp_path, rows: list[dict], **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    source = {"format": "chat", "path": str(path), "split": "train"}
    overrides = {"data.sources": [source]} | {f"data.{name}": value for name, value in settings.items()}
    recipe = load_recipe(overrides=overrides)
    return recipe, prepare.prepare(recipe)


def test_rows_in_out_and_aside_are_said_with_an_example_and_what_helps():
    first = {"duplicate": Reject("a:2", "duplicate", "of a:1"), "empty prompt": Reject("a:9", "empty prompt")}
    reasons = Counter({"empty prompt": 1, "duplicate": 5})
    entry = {"rows": {"train": 90, "val": 4}} | aside.record(reasons, first, aside.EndTokens())
    assert aside.account(entry) == [
        "rows: 100 in, 94 out, 6 aside (in data/quarantine.jsonl)",
        "  5 duplicate, the first a:2: of a:1; `data.duplicates: none` keeps them",
        "  1 empty prompt, the first a:9; no setting keeps these: mend the rows",
        "WARNING: 6% of the rows were put aside",
    ]
    entry["rows"]["train"] = 900
    assert not any("WARNING" in line for line in aside.account(entry))


def test_more_than_the_allowed_share_stops_with_one_line():
    reasons = Counter({"schema": 6})
    aside.check_share(reasons, 6, 0.5, "6 schema")
    with pytest.raises(
        UserError, match=r"6 of 11 rows were put aside: 6 schema.*`data.max_aside: 0.56`"
    ) as error:
        aside.check_share(reasons, 5, 0.5, "6 schema")
    assert "\n" not in str(error.value)
    aside.check_share(reasons, 5, 0.56, "6 schema")


def test_end_tokens_of_another_model_in_several_rows_are_a_warning():
    tokens = aside.EndTokens()
    for text in ("<|eot_id|> ends a turn, </s> a text", "a [/INST] b </s>", "plain <b> [1]"):
        tokens.add(row(text))
    assert (tokens.rows, tokens.tokens["</s>"]) == (2, 2)
    assert "end_tokens" not in aside.record(Counter(), {}, tokens)
    tokens.add(row("<end_of_turn>"))
    entry = {"rows": {"train": 4}} | aside.record(Counter(), {}, tokens)
    warning = aside.account(entry)[-1]
    assert warning.startswith("WARNING: 3 rows hold end tokens of another model (</s>, ")


def test_prepare_says_it_last_and_markup_in_rows_is_text(tmp_path, embedded, capsys):
    bad = {"prompt": "q [/INST] [bold]x[/]", "completion": "no box, 17 [/red]", "answer": "1"}
    recipe, record = prepared(tmp_path, [*(good(i) for i in range(1, 20)), bad, {"prompt": "[/b]"}])
    prepare.show(record)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4] == "rows: 21 in, 19 out, 2 aside (in data/quarantine.jsonl)"
    assert lines[-1] == "WARNING: 10% of the rows were put aside"
    table = prepare.quarantine(recipe)
    Console(file=(tmp_path / "out.txt").open("w"), width=200).print(table)
    assert table.row_count == 2


def test_prepare_stops_when_most_rows_are_put_aside(tmp_path, embedded):
    rows = [good(1), good(2), *[{"prompt": f"q {i}", "completion": "nan"} for i in range(3)]]
    with pytest.raises(
        UserError, match=r"3 of 5 rows were put aside: 3 error text .*quarantine.jsonl.*max_aside"
    ):
        prepared(tmp_path, rows)
    _, record = prepared(tmp_path, rows, max_aside=0.6)
    assert record["rows"]["train"] == 2 and record["quarantined"] == {"error text": 3}

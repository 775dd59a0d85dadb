"""Sources and checks: broken rows end in the quarantine with the right reason, and the rest trains."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import whole_recipe
import yaml
from story_rows import good

from tunebook.data.prepare import prepare
from tunebook.data.storage import load
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def long(i: int) -> dict:
    return good(i) | {"completion": "word " * 600 + good(i)["completion"]}


@pytest.fixture
def chat(tmp_path):
    """A chat recipe over good rows and two rows of every kind of broken input.

    Returns its path, the number of lines, and how many rows are to be put aside for each reason.
    """
    test = [good(i) for i in range(100, 110)]
    broken: dict[str, list[dict | bytes]] = {
        "bad JSON": [b'{"prompt": "x", ', b"not json"],
        "missing column": [{"prompt": "only a prompt"}, {"completion": "only an answer"}],
        "broken turns": [{"messages": [{"role": "user", "content": text}]} for text in ("no answer", "none")],
        "empty completion": [good(51) | {"completion": ""}, good(52) | {"completion": " \n"}],
        "wrong answer": [good(53) | {"answer": "1"}, good(54) | {"completion": "no box, 17"}],
        "too long": [long(55), long(56)],
        "not UTF-8": [b'{"prompt": "caf\xe9", "completion": "x"}', b"\xff\xfe{}"],
        "in the test or val split": [test[0], test[1] | {"prompt": "Please solve. " + test[1]["prompt"]}],
        "error text": [
            {"prompt": "q 1", "completion": "Error: API call failed"},
            {"prompt": "q 2", "completion": "GENERATION_ERROR"},
        ],
        "duplicate": [good(2), good(3)],
    }
    rows: list[dict | bytes] = [good(i) for i in range(1, 41)]
    for i, pair in enumerate(broken.values()):
        # Scattered; the copies of rows 2 and 3 come before or after them, and one of each stays.
        rows[i * 3 : i * 3] = pair
    train_path, test_path = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    train_path.write_bytes(b"\n".join(lines) + b"\n")
    test_path.write_text("".join(json.dumps(row) + "\n" for row in test))
    content = whole_recipe.content("smollm2-math")
    content["name"] = "chat"
    content["data"]["for_pairs"] = 0
    content["data"]["sources"] = [
        {"format": "chat", "path": str(train_path), "split": "train"},
        {"format": "chat", "path": str(test_path), "split": "test"},
    ]
    path = tmp_path / "chat.yaml"
    path.write_text(yaml.safe_dump(content))
    return path, len(rows), {reason: 2 for reason in broken}


def test_broken_rows_end_in_the_quarantine_and_the_rest_trains(chat, embedded):
    path, lines, expected = chat
    recipe = load_recipe(path)
    record = prepare(recipe)
    quarantine = recipe.run_dir / "data" / "quarantine.jsonl"
    rejects = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert Counter(r["reason"] for r in rejects) == expected == record["quarantined"]
    assert record["rows"] == {"train": 40, "val": 0, "test": 10}
    assert record["rows"]["train"] + len(rejects) == lines  # none lost
    by_reason = {r["reason"]: r for r in rejects}
    assert "missing" in next(r["detail"] for r in rejects if r["reason"] == "missing column")
    assert by_reason["bad JSON"]["source_id"].startswith("train.jsonl:")
    assert load(recipe, "train")[0]["completion"][0]["content"].startswith("### Solution")
    assert load(recipe, "train")[0]["prompt"][0] == {
        "role": "system",
        "content": "Solve the problem. Put the final answer in \\boxed{}.",
    }


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
    with pytest.raises(UserError, match=r"no training row is left: 1 missing column \(the first: "):
        prepare(
            load_recipe(overrides={"data.sources": [{"format": "chat", "path": str(data), "split": "train"}]})
        )
    (tmp_path / "bad.parquet").write_text("PAR1 not")
    for path, message in (
        (tmp_path / "bad.parquet", "cannot read"),
        ("rows.xlsx", "a folder or pattern of them, or a hub id"),
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

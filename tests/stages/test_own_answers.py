"""Prompts without an answer: SFT learns the model's own right answers; pairs and test need none."""

from __future__ import annotations

import contextlib
import json

import pytest

from tunebook.data import own_answers as module
from tunebook.data.own_answers import own_answers_stage
from tunebook.data.prepare import data_stage, prepare
from tunebook.data.storage import load, read_parquet, training_rows
from tunebook.evaluation.items import held_out_items
from tunebook.generation.generate import read_records
from tunebook.pairs.pairs import _rows
from tunebook.recipe.loading import load_recipe
from tunebook.training.sft import sft_rows

ASKED = [{"prompt": f"Name a thing of the letter {letter}."} for letter in "abcdef"]


@pytest.fixture
def recipe(tiny, tmp_path):
    """A right answer of the tiny model, which writes noise, has an `e` in its 8 tokens."""
    sources = []
    for name, use in (("sft", "sft"), ("pairs", "pairs"), ("val", None), ("test", None)):
        rows = [{"prompt": f"{row['prompt']} ({name})"} for row in ASKED]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        split = name if use is None else "train"
        path = str(tmp_path / f"{name}.jsonl")
        sources.append({"format": "prompts", "path": path, "split": split, "use": use})
    return load_recipe(
        "smollm2-instructions",
        overrides={
            "model.base": str(tiny),
            "model.dtype": "float32",
            "check": {"checkers": [{"name": "regex", "pattern": "e"}]},
            "data.sources": sources,
            "data.own_answers": {"samples": 6, "keep": 2, "max_new_tokens": 8, "batch_size": 9},
            "data.near_duplicate": 1.0,
        },
    )


@contextlib.contextmanager
def refuse(*_):
    """In the place of a model that must not be asked."""
    pytest.fail("the model was asked again")
    yield


def test_right_answers_become_rows(recipe, monkeypatch, capsys):
    # The tiny model hardly ever ends an answer, and one that is cut off is not right.
    monkeypatch.setattr(
        module,
        "_is_right",
        lambda check, row, sample: check.judge(vars(row), sample.text, False).correct is True,
    )
    record = prepare(recipe)
    stage = own_answers_stage(recipe)
    samples = read_records(stage.dir / "samples.jsonl")
    assert len(samples) == 36
    # 1) what is kept: at most two of a prompt, different ones, in the order in which they were drawn
    expected = []
    for start in range(0, 36, 6):
        right = [sample["text"].strip() for sample in samples[start : start + 6] if "e" in sample["text"]]
        for text in list(dict.fromkeys(right))[:2]:
            expected.append((samples[start]["source_id"], text))
    kept = read_parquet(stage.dir / "rows.parquet")
    assert [(row["source_id"], row["text"]) for row in kept] == expected and expected
    counts = stage.result["pass_counts"]
    assert sum(counts.values()) == stage.result["prompts"] == 6
    assert sum(int(k) * n for k, n in counts.items()) == sum("e" in sample["text"] for sample in samples)
    assert f"{6 - counts['0']} of 6 prompts have right ones" in capsys.readouterr().out
    # 2) what each stage gets
    trained = training_rows(recipe, "sft")
    assert {row["completion"][0]["content"] for row in trained} == {text for _, text in expected}
    assert record["rows"] == {"train": len(trained) + 6, "val": 6, "test": 6}
    for_pairs = _rows(recipe, 1)
    assert len(for_pairs) == 6 and not any(row["completion"] for row in for_pairs)
    assert len(held_out_items(recipe, None)) == 6 == len(load(recipe, "val"))
    rows = sft_rows(recipe)
    assert (len(rows["train"]), len(rows["val"])) == (len(trained), 0)
    # 3) nothing is asked twice: not by the same recipe, nor by one that keeps other answers
    monkeypatch.setattr(module.Engine, "open", refuse)
    assert data_stage(recipe).done
    recipe.data.own_answers.keep = 1
    assert not data_stage(recipe).done
    again = prepare(recipe)
    assert again["rows"]["train"] == 6 + len({source_id for source_id, _ in expected})


def test_an_interrupted_sampling_goes_on(recipe, monkeypatch):
    def stop_after(number):
        written = []

        def judge(check, row, sample):
            written.append(row)
            if len(written) > number:
                raise KeyboardInterrupt
            return "e" in sample.text

        monkeypatch.setattr(module, "_is_right", judge)
        return written

    stop_after(20)  # in the third batch of nine
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe)
    stage = own_answers_stage(recipe)
    before = read_records(stage.partial / "samples.jsonl")
    assert len(before) == 18 and not stage.dir.exists()
    asked = stop_after(1000)
    prepare(recipe)
    assert len(asked) == 18
    after = {sample["index"]: sample for sample in read_records(stage.dir / "samples.jsonl")}
    assert len(after) == 36 and all(after[sample["index"]] == sample for sample in before)

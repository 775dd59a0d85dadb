"""`python -m school_geometry`: rows that `format: chat` reads as the problems themselves, and figures."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import islice

import pytest

from school_geometry.__main__ import main
from school_geometry.problems import problems
from tunebook.data import sources
from tunebook.recipe.loading import load_recipe


def test_rows_of_a_file_are_the_rows_of_the_problems(tmp_path):
    files = []
    for split, number in (("train", 60), ("val", 20), ("test", 30)):
        arguments = [str(tmp_path), "--split", split, "--number", str(number), "--seed", "7"]
        main([*arguments, "--wordings", "0", "2"])
        files.append({"format": "chat", "path": str(tmp_path / f"{split}.jsonl"), "split": split})
    drawn = {"format": "geometry", "train": 60, "val": 20, "test": 30, "wordings": [0, 2]}
    rows = []
    for chosen in ([drawn], files):
        recipe = load_recipe(overrides={"data.sources": chosen, "seed": 7})
        rows.append(list(sources.read(recipe, tmp_path / "images")))
    of_problems, of_files = rows
    assert len(of_problems) == len(of_files) == 110
    for problem, row in zip(of_problems, of_files, strict=True):
        assert (problem.prompt, problem.completion) == (row.prompt, row.completion)
        assert (problem.split, problem.gold, problem.slice) == (row.split, row.gold, row.slice)
    assert Counter(row.slice for row in of_files if row.split == "test") == {
        "same families": 15,
        "new wordings": 10,
        "new families": 5,
    }


def test_the_same_command_writes_the_same_rows_and_overwrites_none(tmp_path, capsys):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        main([str(tmp_path / name), "--number", "50", "--seed", str(seed)])
    texts = {name: (tmp_path / name / "train.jsonl").read_text() for name in ("one", "two", "other")}
    assert texts["one"] == texts["two"] != texts["other"]
    rows = [json.loads(line) for line in texts["one"].splitlines()]
    assert len({row["id"] for row in rows}) == 50
    with pytest.raises(SystemExit):
        main([str(tmp_path / "one"), "--number", "5"])
    assert "train.jsonl is there already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "new"), "--split", "val", "--number", "90000"])
    assert "different problems, 45000 were asked for" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_figures_are_a_data_set_in_the_form_of_mm_math(tmp_path, capsys):
    main([str(tmp_path / "figures"), "--figures", "--number", "4"])
    overrides = {"data.sources": [{"format": "mm_math", "path": str(tmp_path / "figures"), "split": "train"}]}
    recipe = load_recipe(overrides=overrides)
    rows = list(islice(sources.read(recipe, tmp_path / "images"), 9))
    assert len(rows) == 4 and all(row.images and row.gold for row in rows)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "more"), "--figures", "--split", "test"])
    assert "of the train split" in capsys.readouterr().err


def test_the_problems_are_those_that_the_recorded_runs_learnt_from():
    digest = hashlib.sha256()
    for split, number, wordings in (
        ("train", 800, (0,)),
        ("train", 500, (1, 2)),
        ("val", 60, (0,)),
        ("test", 300, (0,)),
    ):
        for problem in problems(split, number, 0, ("same families",), wordings):
            digest.update(f"{problem.question}\n{problem.solution}\n".encode())
    assert digest.hexdigest() == "6ecae40c7d8cf61c6e29fdf26c1c8ba39f37fd2ab0e4bbc37492a78d1be3bf7a"

"""A checker in a process of its own: it may hang, exit, be killed or want all memory, and the run goes on."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from tunebook.checkers import process
from tunebook.checkers.check import Check
from tunebook.data.prepare import data_stage, prepare
from tunebook.recipe.errors import UserError
from tunebook.recipe.layers import whole_check
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import CheckConfig

MINE = """
import os, signal, subprocess, sys, time
from neighbour import WANTED

def score(prompts, completions, **columns):
    print("a line that is no reply")
    text = completions[0][-1]["content"]
    if text == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "1000"])
        open("child", "w").write(str(child.pid))
        time.sleep(1000)
    if text == "exit":
        sys.exit(3)
    if text == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "memory":
        return [len(bytearray(2**40))]
    if text == "raise":
        raise KeyError(columns["answer"][0])
    if text == "none":
        return [None]
    if text == "length":
        return []
    return [float(text == WANTED and columns["gold"] == ["7"] and prompts[0][0]["role"] == "user")]
"""

ROW = {
    "source_id": "my.csv:3",
    "prompt": [{"role": "user", "content": "q"}],
    "gold": "7",
    "columns": json.dumps({"answer": "7"}),
}


def opened(value, folder: Path) -> Check:
    config = CheckConfig.model_validate(whole_check(value))
    config.place([str(folder)])
    return Check(config)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_checks.py").write_text(MINE)
    (tmp_path / "neighbour.py").write_text("WANTED = 'right'")
    return opened({"name": "my_checks.py:score", "timeout": 2}, tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hang", "took longer than 2 seconds"),
        ("exit", "ended its process (with exit code 3)"),
        ("kill", "ended its process (by signal 9)"),
        ("memory", "raised MemoryError: MemoryError (line 18)"),
        ("raise", "raised KeyError: '7' (line 20)"),
        ("length", "returned 0 scores for 1 answers"),
    ],
)
def test_whatever_a_function_does_the_next_answer_is_scored(mine, text, why, capsys, tmp_path):
    assert mine.judge(ROW, "right").score == 1.0
    started = time.monotonic()
    judgement = mine.judge(ROW, text)
    assert time.monotonic() - started < 20
    assert (judgement.correct, judgement.score, judgement.how) == (None, None, "failed")
    assert f"my_checks.py:score, row my.csv:3: {why}; the answer has no score\n" in capsys.readouterr().out
    assert mine.judge(ROW, "right").score == 1.0 and mine.judge(ROW, "wrong").score == 0.0
    # What it has started is ended with it.
    if text == "hang":
        child = int((tmp_path / "child").read_text())
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_nothing_can_be_said_is_no_failure(mine, capsys):
    judgement = mine.judge(ROW, "none")
    assert (judgement.correct, judgement.score, judgement.how) == (None, None, "none")
    assert capsys.readouterr().out == ""


def test_a_function_that_is_wrong_itself_stops_at_once(mine, tmp_path):
    with pytest.raises(UserError, match=r"^check: my_checks\.py:scor cannot be loaded: .* no function scor$"):
        opened("my_checks.py:scor", tmp_path).judge(ROW, "x")
    (tmp_path / "neighbour.py").write_text("import sys; sys.exit(5)")
    with pytest.raises(UserError, match=r"cannot be loaded: ended its process \(with exit code 5\)$"):
        opened("my_checks.py:score", tmp_path).judge(ROW, "x")


LIMITED = """
def score(prompts, completions, **columns):
    return [float(len(completions[0][-1]["content"]) <= columns["limit"][0])]
"""


def test_rows_are_checked_by_a_function_with_their_own_columns(tmp_path, capsys):
    rows = []
    for i in range(40):
        rows.append({"question": f"What is number {i}?", "answer": f"It is {i}.", "limit": 10})
    rows[3]["limit"] = 5
    rows[7]["limit"] = "ten"
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_checks.py").write_text(LIMITED)
    path = tmp_path / "my.yaml"
    path.write_text("data: {sources: [{path: my.jsonl, split: train}]}\ncheck: my_checks.py:score\n")
    recipe = load_recipe(path, overrides={"model.base": "smollm2-135m-instruct"})
    record = prepare(recipe)
    # A row that is too long is put aside; of one at which the function fails nothing is known, and it stays.
    assert record["quarantined"] == {"wrong answer": 1} and record["rows"]["train"] == 39
    assert "my_checks.py:score, row my.jsonl:8: raised TypeError: " in capsys.readouterr().out
    assert record["settings"]["check"]["versions"] == {"my_checks.py:score": "1"}
    # Another function is other data.
    assert data_stage(recipe).done
    (tmp_path / "my_checks.py").write_text(LIMITED.replace("<=", "<"))
    assert not data_stage(recipe).done
    # Where none is right, the message names what decides.
    (tmp_path / "my_checks.py").write_text(LIMITED.replace("<=", ">"))
    with pytest.raises(UserError, match=r"its score by my_checks\.py:score is 0, check\.threshold is 1"):
        prepare(recipe)


def test_a_file_may_have_the_name_of_a_module_of_python(tmp_path):
    (tmp_path / "json.py").write_text("def score(prompts, completions, **columns):\n    return [0.5]\n")
    check = opened({"name": "json.py:score", "threshold": 0.5}, tmp_path)
    assert check.judge(ROW, "x").correct and check.judge(ROW, "y").score == 0.5


def test_an_interrupted_call_leaves_no_reply_for_the_next(mine, monkeypatch):
    ((_, function),) = mine._functions
    assert mine.judge(ROW, "right").score == 1.0

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(process.select, "select", interrupt)
        with pytest.raises(KeyboardInterrupt):
            mine.judge(ROW, "right")
    assert function.process is None and mine.judge(ROW, "wrong").score == 0.0


def test_a_pattern_that_never_ends_is_ended(tmp_path, capsys):
    check = opened({"name": "regex", "pattern": "^(a+)+$"}, tmp_path)
    ((_, function),) = check._functions
    function.timeout = 1.0
    assert check.judge(ROW, "aaa").correct is True
    assert check.judge(ROW, "a" * 60 + "b").how == "failed"
    assert "regex, row my.csv:3: took longer than 1 seconds" in capsys.readouterr().out
    assert check.judge(ROW, "b").correct is False


def test_a_schema_fetches_nothing(tmp_path, capsys):
    check = opened({"name": "json", "schema": {"$ref": "http://127.0.0.1:9/person.json"}}, tmp_path)
    assert check.judge(ROW, "{}").how == "failed"
    assert "Unresolvable: http://127.0.0.1:9/person.json" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^check: json cannot be loaded: the schema is no JSON schema"):
        opened({"name": "json", "schema": {"type": "objekt"}}, tmp_path).judge(ROW, "{}")

"""Rewriting through an API: a server that misbehaves in every way, and a real language model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter

import api
import kill
import pytest
from cleaning import lines, recipe_file

from tunebook.data import clean, raw_solutions
from tunebook.data.prepare import prepare
from tunebook.data.storage import load
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe

KEY = "sk-secret-0123456789"


@pytest.fixture
def server(tmp_path):
    """The misbehaving server; yields its address and the log of what it has answered."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path / "server.log"
    command = [sys.executable, api.__file__, str(port), str(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "READY\n"
    yield f"http://127.0.0.1:{port}/v1", log
    process.kill()
    process.communicate()


def test_chaos_ends_with_every_row_right_or_quarantined_in_spite_of_kills(server, tmp_path, monkeypatch):
    url, log = server
    path = recipe_file(tmp_path, 120, url=url, concurrency=8)
    environment = os.environ | {"API_KEY": KEY}
    command = [sys.executable, "-m", "tunebook", "clean", "-r", str(path)]
    said = []
    for answered in (25, 60):  # killed twice in the middle of its work
        enough = lambda n=answered: log.exists() and len(log.read_text().splitlines()) >= n  # noqa: E731
        said.append(kill.tunebook("clean", "-r", str(path), when=enough, env=environment))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(path)
    good, bad = (lines(recipe.run_dir / "clean" / f"{name}.jsonl") for name in ("rows", "quarantine"))
    assert {p.name for p in recipe.run_dir.rglob(".*")} == {".lock", ".owner.json"}
    numbers = sorted(int(row["source_id"].rpartition(":")[2]) for row in good + bad)
    assert numbers == list(range(1, 124))  # none lost, none twice
    for row in good:
        n = int(row["source_id"].rpartition(":")[2]) - 1
        assert api.KINDS[n % 12] in {"right", "once wrong", *api.TROUBLE}
        assert row["answer"] == str(n + 2) and row["completion"] == api.solution(str(n + 2))
    expected = {
        "refuses": "error text or refusal",
        "wrong": "wrong answer",
        "chinese": "another language",
        "empty": "empty",
    }
    for row in bad[:-3]:
        assert (
            row["reason"].startswith(expected[api.KINDS[(int(row["source_id"].rpartition(":")[2]) - 1) % 12]])
            and row["original"]
        )
    assert [row["reason"] for row in bad[-3:]] == ["bad JSON", "schema", "no answer to check against"]
    assert (len(good), len(bad)) == (80, 43)

    twice = sum(count - 1 for count in Counter(map(tuple, lines(log))).values())
    assert twice <= 2 * 8  # only what was in flight at a kill
    before = len(lines(log))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    forced = subprocess.run(
        [*command, "--force"], env=environment, capture_output=True, text=True, check=False
    )
    assert (again.returncode, forced.returncode, len(lines(log))) == (
        0,
        0,
        before,
    )  # nothing is asked a second time

    for text in (*said, *(d.stdout + d.stderr for d in (done, again, forced))):
        assert KEY not in text
    for file in recipe.run_dir.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    monkeypatch.delenv("API_KEY", raising=False)
    record = prepare(recipe)
    assert sum(record["rows"].values()) == 80 and load(recipe, "train")[0]["completion"][0][
        "content"
    ].startswith("### Solution")


def test_errors_are_one_line_before_or_after_work(server, tmp_path, monkeypatch):
    url, log = server
    for name in ("API_KEY", "BASE_URL", "MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no `clean` section"):
        clean.clean(load_recipe())
    for given, missing in (
        ({}, "BASE_URL"),
        ({"url": "https://host/v1"}, "API_KEY"),
        ({"url": url, "model": None}, "MODEL"),
    ):
        with pytest.raises(
            UserError,
            match=f"{missing} is not set: put it into the environment or into .env, as in {missing}=",
        ):
            clean.clean(load_recipe(recipe_file(tmp_path, 2, **given)))
    monkeypatch.setenv("API_KEY", "sk-wrong")
    recipe = load_recipe(recipe_file(tmp_path, 30, url=url, concurrency=4))
    with pytest.raises(UserError, match="refuses") as refused:
        clean.clean(recipe)
    assert "sk-wrong" not in str(refused.value) and "***" in str(refused.value)
    monkeypatch.setenv("API_KEY", KEY)
    down = load_recipe(recipe_file(tmp_path, 30, url="http://127.0.0.1:9/v1", retries=0, concurrency=2))
    with pytest.raises(UserError, match=r"has not answered [45] times"):
        clean.clean(down)
    assert not (recipe.run_dir / "clean").exists()
    dear = load_recipe(
        recipe_file(tmp_path, 30, url=url, concurrency=2, price_in=1000, price_out=2000, budget=1.0)
    )
    assert clean.estimate(dear)["rows"] == 30 and clean.estimate(dear)["cost"] > 1
    with pytest.raises(UserError, match=r"the budget of 1\.0 is spent \(1\.\d0\): raise clean\.budget"):
        clean.clean(dear)
    answered = len(lines(log))
    assert 5 <= answered <= 7  # 0.2 each
    record = clean.clean(
        load_recipe(recipe_file(tmp_path, 30, url=url, concurrency=2, price_in=1000, price_out=2000))
    )
    assert sum(record["rows"].values()) == 33 and len({tuple(x) for x in lines(log)}) == len(lines(log))
    (question, before, after), *_ = clean.examples(dear)
    assert (question, before) == (
        "In row 0: what is 0 plus 2?",
        "0 + 2 = \\boxed{2}",
    ) and after == api.solution("2")


def test_another_model_writes_its_own_rows_and_force_checks_all_again(server, tmp_path, monkeypatch):
    """Also a model that the environment names; nothing is asked twice of the same one."""
    url, log = server
    monkeypatch.setenv("API_KEY", KEY)
    monkeypatch.setenv("BASE_URL", url)
    recipe = load_recipe(recipe_file(tmp_path, 2, model=None))
    asked = []
    for model in "aba":
        monkeypatch.setenv("MODEL", model)
        assert not clean.clean_stage(recipe).done
        record = clean.clean(recipe)
        asked.append(len(lines(log)))
        assert (record["model"], record["settings"]["model"], record["rows"]["clean"]) == (
            model,
            model,
            2,
        ) and clean.clean_stage(recipe).done
    assert asked == [2, 4, 4]
    assert (
        clean.clean(
            load_recipe(recipe_file(tmp_path, 2, model=None, url=url.replace("127.0.0.1", "localhost")))
        )["requests"]
        == 6
    )  # another server

    rows = recipe.run_dir / "clean" / "rows.jsonl"
    clean.clean(recipe)
    before = rows.read_text()
    rows.write_text("{}\n{}\n")
    clean.clean(recipe, force=True)
    assert rows.read_text() == before and len(lines(log)) == 6
    assert not [
        file for file in recipe.run_dir.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()
    ]


def test_a_real_language_model_on_loopback(tmp_path, embedded, monkeypatch):
    """The embedded model through llama.cpp; a grammar holds it to the format, what it says is its own."""
    from tunebook.export import llama_cpp
    from tunebook.models.builtin import embedded_gguf

    monkeypatch.delenv("API_KEY", raising=False)
    grammar = r'root ::= "### Solution\n1. " [a-zA-Z0-9 +=]{8,30} ".\n\n### Final Answer\n\\boxed{" [2-5] "}"'
    with llama_cpp.server(embedded_gguf()) as url:
        path = recipe_file(
            tmp_path,
            8,
            url=f"{url}/v1",
            timeout=60,
            concurrency=4,
            max_new_tokens=60,
            extra={"grammar": grammar},
        )
        record = clean.clean(load_recipe(path))
    rows = lines(load_recipe(path).run_dir / "clean" / "rows.jsonl")
    assert sum(record["rows"].values()) == 11 and record["requests"] >= 8 and record["tokens_out"] > 100
    assert rows and all(raw_solutions.FORMAT.search(row["completion"]) for row in rows)

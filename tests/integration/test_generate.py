"""Answers from a real server on loopback, killed in between; the answer file; sampling."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import whole_recipe
import yaml
from batches import all_answers

from tunebook.checkers.maths import verify
from tunebook.data.storage import read_parquet
from tunebook.generation import answers
from tunebook.recipe.sections import ServerConfig

GRAMMAR = r"""
root ::= "### Solution\n1. " [a-z0-9 +=]{4,24} "\n### Final Answer\n\\boxed{" [4-9] "}"
"""
"""Keeps the base model to the house format: what it says is its own, right now and then."""


class Server:
    """llama.cpp on a port of its own, to be killed and started again."""

    def __init__(self) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        from tunebook.models.builtin import embedded_gguf

        command = [
            sys.executable,
            "-m",
            "tunebook.export.llama_cpp",
            "serve",
            str(embedded_gguf()),
            str(self.port),
            "4",
            "1024",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        while line := self.process.stdout.readline():
            if "READY" in line:
                return
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture
def server():
    server = Server()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def sums_recipe(tmp_path) -> Path:
    """The default recipe on sums with one-digit answers, so that a small model is right now and then."""
    data = tmp_path / "sums.jsonl"
    sums = itertools.product(range(1, 5), range(3, 6))
    rows = [
        {
            "prompt": f"What is {a} + {b}?",
            "completion": f"### Solution\n1. {a} + {b} = {a + b}\n### Final Answer\n\\boxed{{{a + b}}}",
            "answer": str(a + b),
        }
        for a, b in sums
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = whole_recipe.content("smollm2-math")
    content |= {"name": "sums"}
    content["data"]["for_pairs"] = 0
    content["data"] |= {"sources": [{"format": "chat", "path": str(data), "split": "train"}]}
    content["pairs"] = {
        "methods": ["on_policy", "injected_error"],
        "samples": 4,
        "max_new_tokens": 64,
        "max_length_ratio": 4,
        "val": 0,
        "temperature": 2.0,
    }
    path = tmp_path / "sums.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line] if path.exists() else []


def test_pairs_from_a_real_server_that_is_killed_twice(server, sums_recipe, tmp_path):
    """Once for good (one line, exit code 2, nothing lost), once only for seconds (nothing is noticed)."""

    def start(retries: int) -> subprocess.Popen[str]:
        given = {
            "url": server.url,
            "model": "smollm2",
            "concurrency": 4,
            "retries": retries,
            "extra": {"grammar": GRAMMAR},
        }
        command = [
            sys.executable,
            "-m",
            "tunebook",
            "pairs",
            "-r",
            str(sums_recipe),
            "--set",
            f"pairs.server={json.dumps(given)}",
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    folder = tmp_path / "runs" / "sums" / ".pairs.partial"

    def kill_when(process: subprocess.Popen[str], answers: int, file: str) -> None:
        deadline = time.monotonic() + 300
        while len(lines(folder / file)) < answers:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-2000:]
            time.sleep(0.02)
        server.kill()

    first = start(retries=0)
    kill_when(first, 9, "samples.jsonl")
    _, error = first.communicate(timeout=120)
    assert first.returncode == 2
    assert (
        f"tunebook: {server.url} does not answer: start it and run the same command again" in error
        and "Traceback" not in error
    )
    before = lines(folder / "samples.jsonl")
    assert 9 <= len(before) < 48

    server.start()
    second = start(retries=8)
    kill_when(second, 3, "errors.jsonl")
    server.start()
    out, error = second.communicate(timeout=300)
    assert second.returncode == 0, error[-2000:]

    done = tmp_path / "runs" / "sums" / "pairs"
    samples, errors = (
        [json.loads(line) for line in lines(done / f)] for f in ("samples.jsonl", "errors.jsonl")
    )
    assert lines(done / "samples.jsonl")[: len(before)] == before
    assert sorted(s["index"] for s in samples) == list(range(48))  # each asked once
    assert sorted(s["index"] for s in errors) == list(range(12))
    pairs = list(read_parquet(done / "train.parquet"))
    strategies = {p["strategy"] for p in pairs}
    assert "on_policy" in strategies and strategies & {
        "calculation_error",
        "logical_fallacy",
        "process_error",
    }
    for p in pairs:
        assert (
            verify(p["chosen"][0]["content"], p["gold"], boxed_only=True).correct
            is p["chosen_correct"]
            is True
        )
        assert (
            verify(p["rejected"][0]["content"], p["gold"], boxed_only=True).correct is p["rejected_correct"]
        )
        assert p["rejected_correct"] is False or p["strategy"] == "process_error"
        assert json.loads(p["sampling"])["model"] == "smollm2"
    assert "told apart by" in out and out.count("rejected") >= 3 and "\\boxed{" in out


def test_a_server_answers_like_llama_cpp_itself(server):
    """Greedy, so the same text twice; cut off at the limit; each prompt its own answer."""
    config = ServerConfig(url=server.url, model="any", concurrency=3)
    prompts = [
        [{"role": "user", "content": f"Say the word {word}."}]
        for word in ("apple", "river", "stone", "cloud", "tiger")
    ]
    runs = [all_answers(config, prompts, answers.Sampling(8), skip={1}) for _ in range(2)]
    assert runs[0] == runs[1] and sorted(runs[0]) == [0, 2, 3, 4]
    assert all(a.tokens <= 8 for a in runs[0].values()) and any(a.truncated for a in runs[0].values())
    assert len({a.text for a in runs[0].values()}) > 1

"""Answers from a real server on loopback, killed in between; the answer file; sampling."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from tunebook.checkers.maths import verify
from tunebook.data.storage import read_parquet
from tunebook.generation import answers, generate, local
from tunebook.generation.server import REFUSED
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.secrets import secret
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
    sums = [(a, b) for a in range(1, 5) for b in range(3, 6)]
    rows = [
        {
            "prompt": f"What is {a} + {b}?",
            "completion": f"### Solution\n1. {a} + {b} = {a + b}\n### Final Answer\n\\boxed{{{a + b}}}",
            "answer": str(a + b),
        }
        for a, b in sums
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = yaml.safe_load((ROOT / "configs" / "smollm2-math.yaml").read_text())
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


@pytest.mark.slow
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
            "tunebook.cli",
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


@pytest.mark.slow
def test_a_server_answers_like_llama_cpp_itself(server):
    """Greedy, so the same text twice; cut off at the limit; each prompt its own answer."""
    config = ServerConfig(url=server.url, model="any", concurrency=3)
    prompts = [
        [{"role": "user", "content": f"Say the word {word}."}]
        for word in ("apple", "river", "stone", "cloud", "tiger")
    ]
    runs = [
        {
            i: a
            for part in generate.generate(config, prompts, answers.Sampling(8), skip={1})
            for i, a in part.items()
        }
        for _ in range(2)
    ]
    assert runs[0] == runs[1] and sorted(runs[0]) == [0, 2, 3, 4]
    assert all(a.tokens <= 8 for a in runs[0].values()) and any(a.truncated for a in runs[0].values())
    assert len({a.text for a in runs[0].values()}) > 1


def test_a_refusal_names_the_variable_and_never_the_key(monkeypatch):
    """A stub at the edge: no server here asks for a key."""
    import http.server
    import threading

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}"}}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        config = ServerConfig(
            url=f"http://127.0.0.1:{stub.server_port}/v1", model="m", api_key_env="MY_KEY", retries=0
        )
        with pytest.raises(UserError, match=r"HTTP 401.*set MY_KEY in the environment or in \.env") as raised:
            list(generate.generate(config, [[{"role": "user", "content": "?"}]], answers.Sampling(4)))
        stub.shutdown()
    assert "sk-very-secret" not in str(raised.value)


def test_a_prompt_that_a_server_refuses_has_no_answer_and_stops_no_other(capsys):
    """A stub at the edge: the server here refuses no prompt. One that refuses all of them is a mistake in the settings."""
    import http.server
    import threading

    class Picky(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
            message = {
                "message": {"role": "assistant", "content": said.upper()},
                "finish_reason": "stop",
                "index": 0,
            }
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [message]}
            refused = "long" in said
            content = json.dumps({"error": {"message": "too many tokens"}} if refused else body).encode()
            self.send_response(400 if refused else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    def texts_of(*texts):
        return {
            i: a.text
            for part in generate.generate(
                config, [[{"role": "user", "content": t}] for t in texts], answers.Sampling(4)
            )
            for i, a in part.items()
        }

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Picky) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        config = ServerConfig(
            url=f"http://127.0.0.1:{stub.server_port}/v1", model="m", retries=0, concurrency=1
        )
        assert texts_of("long", "a", "long", "b") == {0: "", 1: "A", 2: "", 3: "B"}
        assert "refused 2 of 4 prompts, which have no answer (HTTP 400:" in capsys.readouterr().out
        with pytest.raises(UserError, match=r"refused a request \(HTTP 400\)"):
            texts_of("long", "longer")
        with pytest.raises(UserError, match=r"refused a request \(HTTP 400\)"):
            texts_of(*["long"] * REFUSED, "a", "b")
        stub.shutdown()


def test_a_key_comes_from_the_environment_then_from_dotenv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MY_KEY", raising=False)
    assert secret("MY_KEY") is None
    (tmp_path / ".env").write_text("MY_KEY=from-file\n")
    assert secret("MY_KEY") == "from-file"
    monkeypatch.setenv("MY_KEY", "from-environment")
    assert secret("MY_KEY") == "from-environment"
    assert ".env" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize("kept", [True, False])
def test_an_answer_file_asks_only_what_is_missing(tmp_path, monkeypatch, kept):
    asked = []

    def answering(source, prompts, sampling, images, *, skip, label):
        for i in range(len(prompts)):
            if i not in skip:
                asked.append(i)
                yield {i: answers.Answer(f"answer {i}", 2, False)}

    monkeypatch.setattr(generate, "generate", answering)
    path = tmp_path / "answers.jsonl"
    whole = json.dumps({"index": 2, "text": "kept"}) + "\n" if kept else ""
    path.write_text(whole + '{"index": 0, "te')  # the last line, or the only one, was cut short by a kill
    prompts = [[{"role": "user", "content": str(i)}] for i in range(4)]

    def fill(source):
        return generate.answer_file(
            path, source, prompts, answers.Sampling(4), lambda i, a: {"text": a.text}, "asking"
        )

    assert [r["text"] for r in fill(nullcontext("model"))] == [
        "answer 0",
        "answer 1",
        "kept" if kept else "answer 2",
        "answer 3",
    ]
    assert asked == [0, 1, 3] if kept else [0, 1, 2, 3]

    class Unopened:
        def __enter__(self):
            raise AssertionError("all is there: nothing needs to be loaded")

        def __exit__(self, *args): ...

    assert len(fill(Unopened())) == 4


def test_batches_are_of_similar_length_and_the_same_every_time():
    lengths = [5, 9, 9, 1, 7]
    assert local.batches(lengths, 2) == [[1, 2], [4, 0], [3]]


@pytest.mark.slow
def test_a_seeded_sample_does_not_depend_on_its_batch(tiny_recipe):
    """Nor on rows that end early and are dropped from the batch."""
    from tunebook.models import loading

    recipe = load_recipe(tiny_recipe)
    model, tokenizer = loading.load(recipe)
    model.generation_config.eos_token_id = list(range(0, 49152, 20))  # one token in twenty ends an answer
    prompts = [[{"role": "user", "content": "word " * n}] for n in (1, 4, 9, 2, 9, 7, 7, 1)]
    with local.local(model, tokenizer, None) as source:
        runs = [
            {
                i: a
                for b in generate.generate(source, prompts, answers.Sampling(40, n, 1.0, seeds))
                for i, a in b.items()
            }
            for n, seeds in ((8, list(range(8))), (1, list(range(8))), (8, [*range(4), 9, *range(5, 8)]))
        ]
    assert runs[0] == runs[1]
    assert len({a.tokens for a in runs[0].values()}) > 4 and not all(a.truncated for a in runs[0].values())
    assert {k: v for k, v in runs[0].items() if k != 4} == {k: v for k, v in runs[2].items() if k != 4}
    assert runs[0][4] != runs[2][4]
    assert runs[0][2] != runs[0][4]  # the same prompt, another seed


@pytest.mark.slow
def test_batched_answers_equal_single_ones_in_float32(embedded):
    from school_geometry.problems import problems
    from tunebook.data.formats import Prompts
    from tunebook.models import loading

    recipe = load_recipe(overrides={"model.dtype": "float32"})
    prompts = [Prompts(recipe).ask(p.question) for p in problems("test", 9)] + [
        Prompts(recipe).ask("Hi. " * 40),
        Prompts(recipe).ask("?"),
    ]
    model, tokenizer = loading.load(recipe)
    with local.local(model, tokenizer, None) as source:
        together, alone = (
            {
                i: a
                for batch in generate.generate(source, prompts, answers.Sampling(32, size))
                for i, a in batch.items()
            }
            for size in (11, 1)
        )
    assert together == alone
    assert sorted(together) == list(range(11))
    assert any(a.truncated for a in together.values())

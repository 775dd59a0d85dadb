"""Answers from a real server on loopback, killed in between; the answer file; sampling."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from contextlib import nullcontext

import pytest
from batches import all_answers

from tunebook.generation import answers, generate, local
from tunebook.generation.server import REFUSED
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.secrets import secret
from tunebook.recipe.sections import ServerConfig


def test_a_refusal_names_the_variable_and_never_the_key(monkeypatch):
    """A stub at the edge: no server here asks for a key."""
    import http.server

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
    """A stub at the edge: the server here refuses no prompt.

    One that refuses all of them is a mistake in the settings.
    """
    import http.server

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
        prompts = [[{"role": "user", "content": text}] for text in texts]
        by_number = all_answers(config, prompts, answers.Sampling(4))
        return {i: answer.text for i, answer in by_number.items()}

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


def test_a_budget_holds_over_interruptions_and_what_was_paid_for_is_kept(tmp_path):
    """A busy server is asked again when it says, and each request has the settings of its sample."""
    import http.server

    seen = []

    class Counts(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            busy = len(seen) == 1
            said = {"role": "assistant", "content": seen[-1]["messages"][0]["content"].upper()}
            body = {"choices": [{"message": said, "finish_reason": "stop", "index": 0}]}
            body["usage"] = {"prompt_tokens": 100, "completion_tokens": 50}
            content = json.dumps(body).encode()
            self.send_response(429 if busy else 200)
            if busy:
                self.send_header("Retry-After", "0.1")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    path = tmp_path / "answers.jsonl"
    prompts = [[{"role": "user", "content": text}] for text in "abcdef"]
    sampling = answers.Sampling(4, temperature=1.0, seeds=list(range(10, 16)))

    def fill(budget):
        server = ServerConfig(
            url=f"http://127.0.0.1:{stub.server_port}/v1",
            model="m",
            concurrency=2,
            retries=1,
            tokens_per_minute=10**6,
            price_in=1000,
            price_out=2000,
            budget=budget,
            extra={"top_k": 5},
        )
        usage = answers.Usage()
        return generate.answer_file(
            path, nullcontext(server), prompts, sampling, lambda i, a: {"text": a.text}, "asking", usage=usage
        ), usage

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counts) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        for _ in range(2):  # an answer costs 0.2
            with pytest.raises(
                UserError, match=r"the budget of 0\.5 is spent \(0\.[68]0\): raise pairs\.server\."
            ):
                fill(0.5)
            kept = generate.read_records(path)
            assert len(kept) == len(seen) - 1 in (3, 4)
        records, usage = fill(5)
        stub.shutdown()
    assert [r["text"] for r in records] == list("ABCDEF") and len(seen) == 1 + 6
    assert (usage.requests, usage.tokens_in, usage.tokens_out) == (6, 600, 300)
    for request in seen:
        i = "abcdef".index(request["messages"][0]["content"])
        assert request == {
            "model": "m",
            "messages": prompts[i],
            "max_tokens": 4,
            "temperature": 1.0,
            "seed": 10 + i,
            "top_k": 5,
        }


def test_ctrl_c_gives_up_what_is_under_way():
    import openai  # noqa: F401 - an interrupt within its import may be swallowed there

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ended = threading.Event()

        def interrupt() -> None:
            silent.accept()  # a request is under way, and will never be answered
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)
            if not ended.wait(30):  # a lost interrupt fails the test instead of hanging it
                os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        config = ServerConfig(url=f"http://127.0.0.1:{silent.getsockname()[1]}/v1", model="m")
        prompt = [{"role": "user", "content": "?"}]
        started = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                list(generate.generate(config, [prompt] * 20, answers.Sampling(4)))
            assert time.monotonic() - started < 10
        finally:
            ended.set()
            thread.join()
            signal.signal(signal.SIGINT, before)


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

    def answering(source, prompts, sampling, images, *, skip, label, usage):
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


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ({}, True),
        ({"batch_size": 2}, True),  # a sample depends on its prompt and seed
        ({"temperature": 0.5}, False),
        ({"max_new_tokens": 5}, False),
        ({"seeds": [1, 3]}, False),
        ({"rest": ["another model"]}, False),
        ({"prompts": ["a", "c"]}, False),
    ],
    ids=str,
)
def test_answers_are_kept_by_what_they_depend_on_alone(tmp_path, change, stays):
    def drop(**changes):
        values = {"max_new_tokens": 4, "temperature": 1.0, "seeds": [1, 2], "batch_size": 64, **changes}
        contents = values.pop("prompts", ["a", "b"])
        rest = values.pop("rest", ["model"])
        prompts = [[{"role": "user", "content": content}] for content in contents]
        generate.drop_other_answers(path, prompts, answers.Sampling(**values), rest)

    path = tmp_path / "samples.jsonl"
    path.write_text("{}\n")
    drop()
    assert path.exists()  # without a key nothing speaks against it
    drop(**change)
    assert path.exists() == stays
    path.write_text("{}\n")
    drop(**change)
    assert path.exists()


def test_a_greedy_answer_depends_on_its_batch_too(tmp_path):
    path = tmp_path / "predictions.jsonl"
    for batch_size in (8, 4):
        path.write_text("{}\n")
        generate.drop_other_answers(path, [], answers.Sampling(4, batch_size), None)
    assert not path.exists()


def test_batches_are_of_similar_length_and_the_same_every_time():
    lengths = [5, 9, 9, 1, 7]
    assert local.batches(lengths, 2) == [[1, 2], [4, 0], [3]]

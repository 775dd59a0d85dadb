"""A server with OpenAI's chat interface in a thread of the test, and judges with a known bias."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from api import body

BOTH = re.compile(r"Question:\n(.*)\n\nAnswer A:\n(.*)\n\nAnswer B:\n(.*)\n\nWhich answer", re.DOTALL)
"""Question and answers in what a judge is asked by `prompt/judge.txt`."""


@contextlib.contextmanager
def serving(
    answer: Callable[[str], str | None],
    score: Callable[[dict[str, Any]], dict[str, float] | None] = lambda asked: None,
    counts: int = 100,
    port: int = 0,
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Iterator[str]:
    """Yields the address of a server that says `answer(last message)`, and refuses a prompt by None.

    `score(request)` gives the log-probabilities of the next token; `counts` is the number of tokens that it
    says of each prompt. `complete(request)` gives the whole choice of a completion.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                reply = reply_to(asked)
            content = json.dumps(reply).encode()
            self.send_response(400 if "error" in reply else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    def reply_to(asked):
        if "messages" not in asked:
            likely = score(asked)
            logprobs = likely and {"top_logprobs": [likely]}
            choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": logprobs}
            if complete:
                choice |= complete(asked)
            return {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
        text = answer(asked["messages"][-1]["content"])
        reply = {"error": {"message": "filtered"}} if text is None else body(text)
        if "usage" in reply:
            reply["usage"]["prompt_tokens"] = counts
        return reply

    lock = threading.Lock()
    running = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    # It looks so often (in seconds) whether it is to end.
    thread = threading.Thread(target=running.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def takes_first(_: str) -> str:
    """A judge that always takes what it is shown first."""
    return "[[A]]"


def takes_longer(asked: str) -> str:
    """A judge that always takes the longer answer."""
    _, a, b = BOTH.search(asked).groups()
    if len(a) == len(b):
        return "[[C]]"
    return "[[A]]" if len(a) > len(b) else "[[B]]"

"""A server with OpenAI's chat interface in a thread of the test, and judges with a known bias."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from api import body

BOTH = re.compile(r"Question:\n(.*)\n\nAnswer A:\n(.*)\n\nAnswer B:\n(.*)\n\nWhich answer", re.DOTALL)
"""Question and answers in what a judge is asked by `prompt/judge.txt`."""


@contextlib.contextmanager
def serving(answer: Callable[[str], str | None]) -> Iterator[str]:
    """Yields the address of a server that says `answer(last message)`, and refuses a prompt by None."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                text = answer(json.loads(asked)["messages"][-1]["content"])
            reply = {"error": {"message": "filtered"}} if text is None else body(text)
            content = json.dumps(reply).encode()
            self.send_response(400 if text is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    lock = threading.Lock()
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
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

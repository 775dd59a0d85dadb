"""A server with the OpenAI interface that misbehaves by row number, for the tests and `benchmarks/clean.py`.

    python api.py PORT LOG [--calm] [--latency 0.2]

Prints READY; a line for each request that it has answered goes to LOG.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections import Counter
from typing import Any, TextIO

from aiohttp import web

KINDS = [
    "right",
    "right",
    "429",
    "500",
    "cut",
    "broken",
    "hangs",
    "once wrong",
    "refuses",
    "wrong",
    "chinese",
    "empty",
]
"""What happens to row n: KINDS[n % 12]."""
TROUBLE = {"429", "500", "cut", "broken", "hangs"}
"""Those that come to an end: the second request of the row is answered well."""
HANG_S = 30


def solution(answer: str, first: str = "Add the numbers.") -> str:
    return f"### Solution\n1. {first}\n2. The sum is {answer}.\n\n### Final Answer\n\\boxed{{{answer}}}"


def completion(kind: str, answer: str, is_second_try: bool) -> str:
    """What the model says to a row."""
    if kind == "once wrong":
        return solution(answer if is_second_try else "1")
    odd = {
        "refuses": "I'm sorry, but I can't help with that.",
        "wrong": solution("1"),
        "chinese": solution(answer, "把两个数相加。"),
        "empty": "",
    }
    return odd.get(kind, solution(answer))


async def trouble(kind: str, request: web.Request) -> web.StreamResponse:
    """An error instead of an answer."""
    if kind == "429":
        error = {"error": {"message": "slow down"}}
        return web.json_response(error, status=429, headers={"Retry-After": "0.1"})
    if kind == "500":
        return web.json_response({"error": {"message": "oops"}}, status=500)
    if kind == "cut" and request.transport:
        request.transport.close()
    if kind == "hangs":
        await asyncio.sleep(HANG_S)
    return web.Response(text='{"choices": [{"mess', content_type="application/json")


class Server:
    def __init__(self, log: TextIO, is_calm: bool, latency: float) -> None:
        self.log = log
        self.is_calm = is_calm
        self.latency = latency
        self.requests: Counter[int] = Counter()
        """How often each row was asked."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        messages = (await request.json())["messages"]
        numbers = re.search(r"row (\d+): what is (\d+) plus 2", messages[0]["content"])
        assert numbers
        row, summand = map(int, numbers.groups())
        kind = "right" if self.is_calm else KINDS[row % len(KINDS)]
        is_second_try = len(messages) > 1  # the first answer was wrong, and the client has said so
        self.requests[row] += 1
        await asyncio.sleep(self.latency)
        if request.headers.get("Authorization") == "Bearer sk-wrong":
            error = {"error": {"message": "Incorrect API key provided: sk-wrong"}}
            return web.json_response(error, status=401)
        if kind in TROUBLE and self.requests[row] == 1:
            return await trouble(kind, request)
        self.log.write(json.dumps([row, is_second_try]) + "\n")
        return web.json_response(body(completion(kind, str(summand + 2), is_second_try)))

    async def serve(self, port: int) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print("READY", flush=True)
        await asyncio.Event().wait()


def body(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("log")
    parser.add_argument("--calm", action="store_true")
    parser.add_argument("--latency", type=float, default=0.02)
    options = parser.parse_args()
    with open(options.log, "a", buffering=1) as log:  # noqa: PTH123
        asyncio.run(Server(log, options.calm, options.latency).serve(options.port))


if __name__ == "__main__":
    main()

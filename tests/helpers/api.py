"""A server with the OpenAI interface that misbehaves by row number, for the tests and `benchmarks/clean.py`.

python api.py PORT LOG [--calm] [--latency 0.2]: prints READY; a line for each request goes to LOG.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections import Counter

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


def solution(answer: str, first: str = "Add the numbers.") -> str:
    return f"### Solution\n1. {first}\n2. The sum is {answer}.\n\n### Final Answer\n\\boxed{{{answer}}}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("log")
    parser.add_argument("--calm", action="store_true")
    parser.add_argument("--latency", type=float, default=0.02)
    given = parser.parse_args()
    log, seen = open(given.log, "a", buffering=1), Counter()  # noqa: PTH123, SIM115

    async def answer(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        text = asked["messages"][0]["content"]
        row, a = map(int, re.search(r"row (\d+): what is (\d+) plus 2", text).groups())
        kind = "right" if given.calm else KINDS[row % len(KINDS)]
        again = len(asked["messages"]) > 1
        seen[row] += 1
        await asyncio.sleep(given.latency)
        if request.headers.get("Authorization") == "Bearer sk-wrong":
            return web.json_response(
                {"error": {"message": "Incorrect API key provided: sk-wrong"}}, status=401
            )
        if kind in TROUBLE and seen[row] == 1:
            if kind == "429":
                return web.json_response(
                    {"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.1"}
                )
            if kind == "500":
                return web.json_response({"error": {"message": "oops"}}, status=500)
            if kind == "cut":
                request.transport.close()
            if kind == "hangs":
                await asyncio.sleep(30)
            return web.Response(text='{"choices": [{"mess', content_type="application/json")
        right = str(a + 2)
        said = {
            "once wrong": solution(right if again else "1"),
            "refuses": "I'm sorry, but I can't help with that.",
            "wrong": solution("1"),
            "chinese": solution(right, "把两个数相加。"),
            "empty": "",
        }.get(kind, solution(right))
        log.write(json.dumps([row, again]) + "\n")
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
        return web.json_response(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [choice],
                "usage": usage,
            }
        )

    async def serve() -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", given.port).start()
        print("READY", flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()

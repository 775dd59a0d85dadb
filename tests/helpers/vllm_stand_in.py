"""A stand-in for the program `vllm`: its options, its routes and its way to fail, without a model.

What the tests of the engine show is how this project starts, asks and stops a program like it. vLLM itself
was not run. It reads from the environment:

- STAND_IN_FAILS: it ends at the start, as vLLM does when the GPU has too little room
- STAND_IN_NEVER_READY: it starts and does not answer
- STAND_IN_ENDS_AFTER: it ends after so many answers
- STAND_IN_REFERENCE: a file of log-probabilities (`served.Reference`); those of its models are what it says
- STAND_IN_WITHOUT_ADAPTERS: it gives those of the base for every model
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import answering

FAILURE = """\
(EngineCore_DP0 pid=7) ERROR 11-26 12:00:00 [core.py:700] EngineCore failed to start.
(EngineCore_DP0 pid=7) ERROR 11-26 12:00:00 [core.py:700] ValueError: Free memory on device (3/16 GiB) is less
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def options() -> argparse.Namespace:
    """Those that tunebook gives, as vLLM 0.33 has them; any other is refused."""
    parser = argparse.ArgumentParser("vllm serve")
    parser.add_argument("model_tag")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name")
    parser.add_argument("--revision")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"])
    parser.add_argument("--quantization")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--generation-config")
    parser.add_argument("--chat-template")
    parser.add_argument("--data-parallel-size", type=int)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512])
    parser.add_argument("--lora-modules", nargs="*", default=[])
    parser.add_argument("--gpu-memory-utilization", type=float)
    assert sys.argv[1] == "serve"
    return parser.parse_args(sys.argv[2:])


def score(asked: dict) -> dict[str, float] | None:
    """The log-probability of the next token of an answer in the reference."""
    path = Path(os.environ.get("STAND_IN_REFERENCE", "none"))
    if not path.exists():
        return None
    reference = json.loads(path.read_text())
    name = asked["model"]
    model = "base" if "STAND_IN_WITHOUT_ADAPTERS" in os.environ else name
    return next_token(reference, name, model, asked["prompt"])


def next_token(reference: dict, name: str, model: str, tokens: list[int]) -> dict[str, float] | None:
    """How likely `model` finds the next token of an answer of `name`, as vLLM says it."""
    rows = zip(reference["prompts"], reference["answers"][name], reference["logps"][name][model], strict=True)
    for prompt, answer, logps in rows:
        at = len(tokens) - len(prompt)
        if 0 <= at < len(answer) and prompt + answer[:at] == tokens:
            return {f"token_id:{answer[at]}": logps[at]}
    return None


def main() -> None:
    settings = options()
    # What vLLM starts besides itself must end with it.
    worker = subprocess.Popen(["sleep", "600"])
    started = {**vars(settings), "pids": [os.getpid(), worker.pid]}
    Path(os.environ["STAND_IN_STARTED"]).write_text(json.dumps(started))
    print("INFO 11-26 12:00:00 [api_server.py:1] vLLM API server version 0.33.0", flush=True)
    if "STAND_IN_FAILS" in os.environ:
        print(FAILURE, file=sys.stderr, flush=True)
        worker.kill()
        sys.exit(1)
    if "STAND_IN_NEVER_READY" in os.environ:
        time.sleep(600)
    left = int(os.environ.get("STAND_IN_ENDS_AFTER", "1000000"))

    def answer(question: str) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            print("torch.AcceleratorError: CUDA error: an illegal memory access", flush=True)
            os._exit(1)
        return "It is so.\n\\boxed{60}"

    with answering.serving(answer, score, counts=0, port=settings.port):
        time.sleep(600)


if __name__ == "__main__":
    main()

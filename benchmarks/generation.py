"""Samples per second: our batched sampling against a loop over `model.generate`, one prompt at a time, and against one plain batch.

    uv run python benchmarks/generation.py --out benchmarks/records/generation.json

All sample from the same model (the run's SFT model if it is trained, else the base model) with the same prompts of the training split,
temperature and token limit, by turns in one process. The loop is what many a script does; a turn of it is a few of the prompts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import common
import typer

from tunebook.data.prepare import prepare
from tunebook.data.storage import load
from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import encode, local
from tunebook.models import adapters, backend, loading
from tunebook.models.chat_template import render
from tunebook.recipe.loading import load_recipe
from tunebook.runs.machine import peak_memory_gb

PROFILED = 16
"""Tokens of each answer that torch's profiler looks at, after the turns."""


def main(
    recipe: str = "smollm2-math",
    prompts: Annotated[int, typer.Option(help="Each sampled once a turn, in one batch.")] = 100,
    loop: Annotated[int, typer.Option(help="So many of them a turn one by one, others each turn.")] = 5,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    turns: int = 5,
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
) -> None:
    rec = load_recipe(recipe)
    backend.backend()
    import torch
    from torch.profiler import ProfilerActivity, profile

    prepare(rec)
    rows = load(rec, "train")["prompt"][:prompts]
    model, tokenizer = loading.load(rec)
    adapter = rec.run_dir / "sft" / "adapter"
    model = adapters.load_adapters(model, {"sft": adapter} if adapter.exists() else {})
    turn = iter(range(1000))
    with local(model, tokenizer, "sft" if adapter.exists() else None) as source:

        def sampled(asked: list[Any]) -> int:
            """Tokens of the answers that `model.generate` gives to a plain padded batch."""
            given = encode(source, [render(tokenizer, prompt, 0) for prompt in asked], [[] for _ in asked])
            with torch.inference_mode():
                made = source.model.generate(
                    **given, max_new_tokens=max_new_tokens, do_sample=True, temperature=temperature, top_k=0
                )
            return int((made[:, given["input_ids"].shape[1] :] != tokenizer.pad_token_id).sum())

        def timed(work: Callable[[], tuple[int, int]]) -> Callable[[], dict[str, Any]]:
            def side() -> dict[str, Any]:
                started = time.perf_counter()
                samples, tokens = work()
                seconds = time.perf_counter() - started
                return {
                    "samples_per_s": samples / seconds,
                    "tokens_per_s": tokens / seconds,
                    "tokens": tokens / samples,
                }

            return side

        def ours() -> tuple[int, int]:
            found = [
                a
                for part in generate(source, rows, Sampling(max_new_tokens, prompts, temperature))
                for a in part.values()
            ]
            return len(found), sum(answer.tokens for answer in found)

        def one_by_one() -> tuple[int, int]:
            start = next(turn) * loop % len(rows)
            return loop, sum(sampled([prompt]) for prompt in rows[start : start + loop])

        sides = {
            "tunebook": timed(ours),
            "one by one": timed(one_by_one),
            "one plain batch": timed(lambda: (len(rows), sampled(rows))),
        }
        list(generate(source, rows[:2], Sampling(8)))  # warm up
        found = common.by_turns(sides, turns)
        peak_gb = peak_memory_gb()["process"]
        with profile(
            activities=[ProfilerActivity.CPU], with_flops=True
        ) as profiler:  # not the whole: its events would fill the memory
            started = time.perf_counter()
            list(generate(source, rows, Sampling(PROFILED, prompts, temperature)))
            seconds = time.perf_counter() - started
    rates = {name: [done["samples_per_s"] for done in found[name]] for name in sides}
    record = {
        "model": "sft" if adapter.exists() else "base",
        "dtype": str(model.dtype),
        **{
            key: {name: common.spread([done[key] for done in found[name]]) for name in sides}
            for key in ("samples_per_s", "tokens_per_s")
        },
        "tunebook, times the samples/s of": {
            name: common.ratio(rates["tunebook"], rates[name]) for name in list(sides)[1:]
        },
        "mean_tokens": {
            name: round(sum(done["tokens"] for done in found[name]) / turns, 1) for name in sides
        },
        f"profiled, first {PROFILED} tokens": common.products(profiler, seconds),
        "peak_gb": peak_gb,
        "settings": {
            "prompts": prompts,
            "loop": loop,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "turns": turns,
        },
    }
    common.write(out, record, ("transformers", "torch", "unsloth"))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    typer.run(main)

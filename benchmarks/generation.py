"""Samples per second: batched sampling against a loop over `model.generate`, and against one plain batch.

    uv run python benchmarks/generation.py --out benchmarks/records/generation.json

All sample from the same model (the run's SFT model if it is trained, else the base model) with the same
prompts of the training split, temperature and token limit, by turns in one process. The loop, one prompt at a
time, is what many a script does; a turn of it is a few of the prompts.
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
from tunebook.generation.local import Local, encode, local
from tunebook.models import adapters, backend, loading
from tunebook.models.chat_template import Messages, render
from tunebook.recipe.loading import load_recipe
from tunebook.runs.machine import peak_memory_gb

PROFILED = 16
"""Tokens of each answer that torch's profiler looks at, after the turns."""


class Sampler:
    """The sides. Each samples answers to prompts and returns how many, and their tokens in all."""

    def __init__(
        self, source: Local, prompts: list[Messages], loop: int, temperature: float, max_new_tokens: int
    ) -> None:
        self.source = source
        self.prompts = prompts
        self.loop = loop
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.start = 0

    def tunebook(self, max_new_tokens: int | None = None) -> tuple[int, int]:
        sampling = Sampling(max_new_tokens or self.max_new_tokens, len(self.prompts), self.temperature)
        answers = []
        for batch in generate(self.source, self.prompts, sampling):
            answers += batch.values()
        return len(answers), sum(answer.tokens for answer in answers)

    def one_by_one(self) -> tuple[int, int]:
        prompts = self.prompts[self.start : self.start + self.loop]
        self.start = (self.start + self.loop) % len(self.prompts)
        return len(prompts), sum(self._plain([prompt]) for prompt in prompts)

    def one_batch(self) -> tuple[int, int]:
        return len(self.prompts), self._plain(self.prompts)

    def _plain(self, prompts: list[Messages]) -> int:
        """Tokens of the answers that `model.generate` gives to a plain padded batch."""
        import torch

        tokenizer = self.source.tokenizer
        texts = [render(tokenizer, prompt, 0) for prompt in prompts]
        inputs = encode(self.source, texts, [[] for _ in prompts])
        with torch.inference_mode():
            output = self.source.model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
            )
        return int((output[:, inputs["input_ids"].shape[1] :] != tokenizer.pad_token_id).sum())


def timed(work: Callable[[], tuple[int, int]]) -> Callable[[], dict[str, Any]]:
    """A side for `common.by_turns`."""

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


def main(
    recipe: str = "smollm2-math",
    prompts: Annotated[int, typer.Option(help="Each sampled once a turn, in one batch.")] = 100,
    loop: Annotated[int, typer.Option(help="So many of them a turn one by one, others each turn.")] = 5,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    turns: int = 5,
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
) -> None:
    parsed = load_recipe(recipe)
    backend.backend()
    from torch.profiler import ProfilerActivity, profile

    prepare(parsed)
    rows = load(parsed, "train")["prompt"][:prompts]
    model, tokenizer = loading.load_model(parsed)
    folder = parsed.run_dir / "sft" / "adapter"
    adapter = "sft" if folder.exists() else None
    model = adapters.load_adapters(model, {adapter: folder} if adapter else {})
    with local(model, tokenizer, adapter) as source:
        sampler = Sampler(source, rows, loop, temperature, max_new_tokens)
        sides = {
            "tunebook": timed(sampler.tunebook),
            "one by one": timed(sampler.one_by_one),
            "one plain batch": timed(sampler.one_batch),
        }
        list(generate(source, rows[:2], Sampling(8)))  # warm up
        results = common.by_turns(sides, turns)
        peak_gb = peak_memory_gb()["process"]
        # Not the whole answers: the profiler's events would fill the memory.
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
            started = time.perf_counter()
            sampler.tunebook(PROFILED)
            seconds = time.perf_counter() - started

    rates = {name: [turn["samples_per_s"] for turn in results[name]] for name in sides}
    others = [name for name in sides if name != "tunebook"]
    record = {
        "model": adapter or "base",
        "dtype": str(model.dtype),
        "samples_per_s": {name: common.spread(rates[name]) for name in sides},
        "tokens_per_s": {
            name: common.spread([turn["tokens_per_s"] for turn in results[name]]) for name in sides
        },
        "tunebook, times the samples/s of": {
            name: common.ratio(rates["tunebook"], rates[name]) for name in others
        },
        "mean_tokens": {
            name: round(sum(turn["tokens"] for turn in results[name]) / turns, 1) for name in sides
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

"""Greedy answers to held-out items: this project's evaluation against lm-evaluation-harness's own generation.

    uv run python benchmarks/evaluate.py --out benchmarks/records/evaluate.json

Both ask the same model (the run's SFT model if it is trained, else the base model) in the same precision the
same rendered prompts, by turns in one process, with the same limit, end of turn and batch size. The harness
loads it itself (`HFLM`, with `peft` for the adapter) and answers through `generate_until`, as its generative
tasks do.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import common
import typer

from tunebook.data.prepare import prepare
from tunebook.data.rows import evenly
from tunebook.data.storage import load
from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import local
from tunebook.models import adapters, backend, builtin, loading
from tunebook.models.chat_template import render
from tunebook.recipe.loading import load_recipe
from tunebook.runs.machine import peak_memory_gb


def timed(answer: Callable[[], list[str]]) -> Callable[[], dict[str, Any]]:
    """A side for `common.by_turns`: the answers, with seconds by the clock and of processor."""

    def side() -> dict[str, Any]:
        started = time.perf_counter()
        busy = time.process_time()
        answers = answer()
        return {
            "seconds": time.perf_counter() - started,
            "cpu_s": time.process_time() - busy,
            "answers": answers,
        }

    return side


def main(
    recipe: str = "smollm2-math",
    items: Annotated[int, typer.Option(help="Of the test split, taken evenly.")] = 24,
    max_new_tokens: int = 64,
    batch_size: Annotated[int, typer.Option(help="Of both.")] = 24,
    turns: int = 5,
    threads: Annotated[int | None, typer.Option(help="Of torch.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
) -> None:
    parsed = load_recipe(recipe)
    backend.backend()
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if threads:
        torch.set_num_threads(threads)
    prepare(parsed)
    prompts = [row["prompt"] for row in evenly(load(parsed, "test"), items)]
    model, tokenizer = loading.load_model(parsed)
    folder = parsed.run_dir / "sft" / "adapter"
    adapter = "sft" if folder.exists() else None
    model = adapters.load_adapters(model, {adapter: folder} if adapter else {})
    with local(model, tokenizer, adapter) as source:
        harness = HFLM(
            pretrained=builtin.resolve(parsed.model.base),
            peft=str(folder) if adapter else None,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            batch_size=batch_size,
        )
        settings = {"until": [tokenizer.eos_token], "max_gen_toks": max_new_tokens, "do_sample": False}
        requests = []
        for number, prompt in enumerate(prompts):
            arguments = (render(tokenizer, prompt, 0), settings)
            requests.append(Instance("generate_until", {}, arguments, number))

        def ours() -> list[str]:
            answers = {}
            for batch in generate(source, prompts, Sampling(max_new_tokens, batch_size)):
                answers |= batch
            return [answers[number].text for number in range(len(prompts))]

        def theirs() -> list[str]:
            return list(harness.generate_until(requests, disable_tqdm=True))

        # Warm up: kernels are chosen and caches filled in the first answers.
        ours()
        theirs()
        results = common.by_turns({"tunebook": timed(ours), "lm-eval": timed(theirs)}, turns)

    rates = {name: [len(prompts) / turn["seconds"] for turn in done] for name, done in results.items()}
    cpu = {name: [turn["cpu_s"] for turn in done] for name, done in results.items()}
    equal = 0
    lengths = []
    first = {name: done[0]["answers"] for name, done in results.items()}
    for our_text, their_text in zip(first["tunebook"], first["lm-eval"], strict=True):
        equal += our_text.strip() == their_text.strip()
        lengths.append(len(tokenizer(our_text.strip())["input_ids"]))
    record = {
        "model": adapter or "base",
        "dtype": str(model.dtype),
        "items_per_s": {name: common.spread(rates[name]) for name in results},
        "ratio": common.ratio(rates["tunebook"], rates["lm-eval"]),
        "cpu_s": {name: common.spread(cpu[name]) for name in results},
        "cpu_ratio": common.ratio(cpu["lm-eval"], cpu["tunebook"]),
        "equal_answers": {"of": len(prompts), "equal": equal},
        "mean_tokens": sum(lengths) / len(prompts),
        "peak_gb": peak_memory_gb()["process"],
        "settings": {
            "items": items,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "turns": turns,
            "threads": torch.get_num_threads(),
        },
    }
    common.write(out, record, ("lm-eval", "transformers", "torch", "unsloth"))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    typer.run(main)

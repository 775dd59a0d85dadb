"""Greedy answers to held-out items: this project's evaluation against lm-evaluation-harness's own generation.

    uv run python benchmarks/evaluate.py --out benchmarks/records/evaluate.json

Both ask the same model (the run's SFT model if it is trained, else the base model) in the same precision the same rendered prompts, by
turns in one process, with the same limit, end of turn and batch size. The harness loads it itself (`HFLM`, with `peft` for the
adapter) and answers through `generate_until`, as its generative tasks do.
"""

from __future__ import annotations

import json
import logging
import time
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


def main(
    recipe: str = "smollm2-math",
    items: Annotated[int, typer.Option(help="Of the test split, taken evenly.")] = 24,
    max_new_tokens: int = 64,
    batch_size: Annotated[int, typer.Option(help="Of both.")] = 24,
    turns: int = 5,
    threads: Annotated[int | None, typer.Option(help="Of torch.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
) -> None:
    rec = load_recipe(recipe)
    backend.backend()
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if threads:
        torch.set_num_threads(threads)
    prepare(rec)
    prompts = [row["prompt"] for row in evenly(load(rec, "test"), items)]
    model, tokenizer = loading.load(rec)
    adapter = rec.run_dir / "sft" / "adapter"
    model = adapters.load_adapters(model, {"sft": adapter} if adapter.exists() else {})
    with local(model, tokenizer, "sft" if adapter.exists() else None) as source:
        trained = {"peft": str(adapter)} if adapter.exists() else {}
        lm = HFLM(
            pretrained=builtin.resolve(rec.model.base),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            batch_size=batch_size,
            **trained,
        )
        settings = {"until": [tokenizer.eos_token], "max_gen_toks": max_new_tokens, "do_sample": False}
        asked = [
            Instance("generate_until", {}, (render(tokenizer, prompt, 0), settings), i)
            for i, prompt in enumerate(prompts)
        ]

        def ours() -> dict[str, Any]:
            started, busy = time.perf_counter(), time.process_time()
            found = {
                i: a.text
                for part in generate(source, prompts, Sampling(max_new_tokens, batch_size))
                for i, a in part.items()
            }
            return {
                "seconds": time.perf_counter() - started,
                "cpu_s": time.process_time() - busy,
                "answers": [found[i] for i in range(len(prompts))],
            }

        def theirs() -> dict[str, Any]:
            started, busy = time.perf_counter(), time.process_time()
            found = lm.generate_until(asked, disable_tqdm=True)
            return {
                "seconds": time.perf_counter() - started,
                "cpu_s": time.process_time() - busy,
                "answers": found,
            }

        ours(), theirs()  # warm up
        found = common.by_turns({"tunebook": ours, "lm-eval": theirs}, turns)
    rates = {name: [len(prompts) / turn["seconds"] for turn in done] for name, done in found.items()}
    answers = {name: [text.strip() for text in done[0]["answers"]] for name, done in found.items()}
    same = sum(a == b for a, b in zip(*answers.values(), strict=True))
    record = {
        "model": "sft" if adapter.exists() else "base",
        "dtype": str(model.dtype),
        "items_per_s": {name: common.spread(values) for name, values in rates.items()},
        "ratio": common.ratio(rates["tunebook"], rates["lm-eval"]),
        "cpu_s": {name: common.spread([turn["cpu_s"] for turn in done]) for name, done in found.items()},
        "cpu_ratio": common.ratio(
            *([turn["cpu_s"] for turn in found[name]] for name in ("lm-eval", "tunebook"))
        ),
        "equal_answers": {"of": len(prompts), "equal": same},
        "mean_tokens": sum(len(ids) for ids in tokenizer(answers["tunebook"])["input_ids"]) / len(prompts),
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

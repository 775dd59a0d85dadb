"""Samples per second: our batched generation against a loop over `model.generate`, one prompt at a time.

    uv run python benchmarks/generation.py --recipe smollm2-math --prompts 100

Both sample from the same model (the run's SFT model if it is trained, else the base model) with the same prompts,
temperature and token limit. The loop is what Math Wizard does; it is timed on the first `--loop` prompts.
"""

import json
import time
from typing import Annotated

import typer

from tunebook import models
from tunebook.data.prepare import load, prepare
from tunebook.generate import Sampling, generate, local
from tunebook.recipe import load_recipe
from tunebook.run import environment


def main(
    recipe: str = "smollm2-math",
    prompts: Annotated[int, typer.Option(help="Prompts of the training split, each sampled once.")] = 100,
    loop: Annotated[int, typer.Option(help="So many of them one by one.")] = 20,
    batch_size: int = 100,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
) -> None:
    rec = load_recipe(recipe)
    models.backend()
    import torch

    prepare(rec)
    rows = load(rec, "train")["prompt"][:prompts]
    model, tokenizer = models.load(rec)
    adapter = rec.run_dir / "sft" / "adapter"
    trained = adapter.exists()
    model = models.load_adapters(model, {"sft": adapter} if trained else {})
    with local(model, tokenizer, "sft" if trained else None) as source:
        list(generate(source, rows[:2], Sampling(8)))  # warm up
        start = time.perf_counter()
        answers = [a for part in generate(source, rows, Sampling(max_new_tokens, batch_size, temperature)) for a in part.values()]
        batched = len(answers) / (time.perf_counter() - start)
        tokens, start = 0, time.perf_counter()
        for prompt in rows[:loop]:
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                out = source.model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=True, temperature=temperature)
            tokens += out.shape[1] - ids["input_ids"].shape[1]
        alone = loop / (time.perf_counter() - start)
    print(
        json.dumps(
            {
                "model": "sft" if trained else "base",
                "batched_samples_per_s": round(batched, 3),
                "loop_samples_per_s": round(alone, 3),
                "ratio": round(batched / alone, 1),
                "mean_tokens": {"batched": round(sum(a.tokens for a in answers) / len(answers), 1), "loop": round(tokens / loop, 1)},
                "settings": {
                    "prompts": prompts,
                    "loop": loop,
                    "batch_size": batch_size,
                    "temperature": temperature,
                    "max_new_tokens": max_new_tokens,
                },
                "hardware": environment()["hardware"],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    typer.run(main)

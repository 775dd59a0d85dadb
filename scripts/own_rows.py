"""A stranger's evening, six times: `tunebook init` on own rows, then `run` to the report.

    uv run python scripts/own_rows.py
    uv run python scripts/own_rows.py both

Prose, questions with numbers, several turns with tools, a preference set alone, one on an adapter that
plain PEFT has saved, and SFT with DPO after it. In a temporary folder, with the embedded model and a few
steps each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TUNEBOOK = str(Path(sys.executable).with_name("tunebook"))

# Long enough to go through, short enough to watch.
SHORT = ["--set", "evaluate.max_new_tokens=24", "--set", "evaluate.limit=8"]
STEPS = {"sft": ["--set", "sft.max_steps=4"], "dpo": ["--set", "dpo.max_steps=2"]}
# Enough for the model to answer with a box at all, so that some samples are right and some wrong.
LONGER = ["--set", "sft.max_steps=40"]

LONGEST_RECIPE = 10

PLANETS = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]

ADAPTER = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from tunebook.models.builtin import embedded_model
shape = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
get_peft_model(AutoModelForCausalLM.from_pretrained(embedded_model()), shape).save_pretrained("elsewhere")
"""


def write_rows(name: str, row: Callable[[int], dict[str, Any]], count: int = 60) -> None:
    """A .jsonl file of so many rows."""
    with Path(name).open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps(row(number)) + "\n")


def prose(number: int) -> dict[str, Any]:
    """A question with an answer in words."""
    planet = PLANETS[number % 8]
    return {
        "instruction": f"Write a line about {planet}, for page {number}.",
        "output": f"On page {number} we look at {planet}, a world with a sky of its own.",
    }


def numbers(number: int) -> dict[str, Any]:
    """A question with a number for an answer."""
    return {"question": f"What is {number} + {number * 7 % 50}?", "answer": str(number + number * 7 % 50)}


def boxed(number: int) -> dict[str, Any]:
    """A problem whose solution ends in a box, which DPO's samples are checked against."""
    total = number + number * 7 % 50
    return {"problem": f"What is {number} + {number * 7 % 50}?", "solution": f"It is \\boxed{{{total}}}."}


def turns(number: int) -> dict[str, Any]:
    """A conversation of two questions, the second one answered with a tool's result."""
    call = {"name": "tide", "arguments": json.dumps({"harbour": f"harbour {number}"})}
    return {
        "messages": [
            {"role": "user", "content": f"I am guest {number}."},
            {"role": "assistant", "content": f"Welcome, guest {number}."},
            {"role": "user", "content": f"When is high tide in harbour {number}?"},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": f"{number % 12}:30"},
            {"role": "assistant", "content": f"At {number % 12}:30."},
        ],
        "tools": [{"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}],
    }


def preference(number: int) -> dict[str, Any]:
    """A prompt with a better and a worse answer."""
    planet = PLANETS[number % 8]
    return {
        "prompt": f"Give fact {number} about {planet}.",
        "chosen": f"{planet} goes round the Sun, says page {number}.",
        "rejected": f"{planet} is made of cheese number {number}.",
    }


def run(form: str, rows: Callable[[int], dict[str, Any]], stages: str, *options: str, more: str = "") -> None:
    """`init`, then `run`, for one form of rows; ends the script when either fails or the recipe is long."""
    write_rows(f"{form}.jsonl", rows)
    started = time.perf_counter()
    subprocess.run([TUNEBOOK, "init", f"{form}.jsonl", *options], check=True)
    recipe = Path(f"{form}.yaml")
    if more:
        text = recipe.read_text(encoding="utf-8")
        if more.startswith("dpo:"):
            text = text.replace("dpo:\n", "")
        recipe.write_text(text + more, encoding="utf-8")
    lines = len(recipe.read_text(encoding="utf-8").splitlines())
    steps = [option for stage in stages.split() for option in STEPS[stage]]
    subprocess.run([TUNEBOOK, "run", "--recipe", str(recipe), *steps, *SHORT], check=True)
    report = Path("runs") / form / "report.html"
    if lines > LONGEST_RECIPE or not report.is_file():
        raise SystemExit(f"{form}: a recipe of {lines} lines, report {report.is_file()}")
    print(
        f"\n=== {form}: {lines} lines of recipe, {time.perf_counter() - started:.0f} s to {report}\n",
        flush=True,
    )


def main() -> None:
    """All six, or those that are named, in a temporary folder."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.environ["TUNEBOOK_RUNS"] = str(Path(folder) / "runs")
    asked = sys.argv[1:] or ["prose", "numbers", "turns", "preference", "elsewhere", "both"]
    if "prose" in asked:
        run("prose", prose, "sft")
    if "numbers" in asked:
        run("numbers", numbers, "sft")
    if "turns" in asked:
        # The embedded model's own template shows no tools.
        run("turns", turns, "sft", more="model: {chat_template: prompt/chatml_tools.jinja}\n")
    if "preference" in asked:
        run("preference", preference, "dpo")
    if "elsewhere" in asked:
        subprocess.run([sys.executable, "-c", ADAPTER], check=True)
        run("elsewhere", preference, "dpo", more="dpo: {start: elsewhere}\n")
    if "both" in asked:
        SHORT.extend(LONGER)
        run("both", boxed, "sft dpo", "--goal", "both")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""Tokens a second and peak memory of SFT on a CPU: tunebook's settings against stock TRL + PEFT.

And against themselves with one of them switched.

uv run python benchmarks/sft.py --out benchmarks/records/sft.json
"""

from pathlib import Path
from typing import Annotated

import typer
from training import main

SIDES = {
    "tunebook": {},
    "stock TRL + PEFT": {},
    "stock, adapter in bfloat16": {},
    "with model.attn_implementation eager": {"model.attn_implementation": "eager"},
}


def run(
    turns: Annotated[int, typer.Option(help="How often each side has its turn, after one to warm up.")] = 5,
    steps: Annotated[int, typer.Option(help="Steps in a turn.")] = 3,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the record.")] = None,
) -> None:
    main("sft", SIDES, turns, steps, out)


if __name__ == "__main__":
    typer.run(run)

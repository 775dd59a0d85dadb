"""Tokens a second and peak memory of SFT: tunebook's settings for a CPU against stock TRL + PEFT, and against themselves with one switched.

uv run python benchmarks/sft.py --out benchmarks/records/sft.json
"""

from pathlib import Path
from typing import Annotated

import typer
from training import STOCK, main

SIDES = {
    "tunebook": {},
    **{name: {} for name in STOCK},
    "without model.share_prompts": {"model.share_prompts": False},
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

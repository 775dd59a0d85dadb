"""How long a command takes before it does anything: help, a mistake in the recipe, an up-to-date stage, the first step of SFT.

    uv run python benchmarks/startup.py --out benchmarks/records/startup.json

Each in a process of its own, by turns with what a user would type instead: `trl --help`, and the imports that a stage would pay for
if they stood at the top of the package.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import common
import typer

TUNEBOOK = [sys.executable, "-m", "tunebook.cli"]
SMALL = [
    "--set",
    "data.sources.0.train=40",
    "--set",
    "data.sources.0.val=6",
    "--set",
    "data.sources.0.test=6",
    "--set",
    "data.sources.1.train=10",
]
TRL = [sys.executable, "-c", "from trl.cli import main; main()"]
COMMANDS: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "tunebook --help": ([*TUNEBOOK, "--help"], (0,)),
    "a mistake in the recipe": ([*TUNEBOOK, "sft", "--set", "sft.learning_rat=1"], (2,)),
    "import tunebook": ([sys.executable, "-c", "import tunebook"], (0,)),
    "tunebook prepare": ([*TUNEBOOK, "prepare", "--force", *SMALL], (0,)),
    "tunebook prepare, up to date": ([*TUNEBOOK, "prepare", *SMALL], (0,)),
}
TORCH: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "trl --help": ([*TRL, "--help"], (0,)),
    "a mistake given to trl": ([*TRL, "sft", "--learning_rat", "1"], (1, 2)),
}
TRAINING: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "tunebook sft, one step": (
        [*TUNEBOOK, "sft", "--force", *SMALL, "--set", "sft.max_steps=1", "--set", "sft.eval_strategy=no"],
        (0,),
    ),
    "import unsloth": ([sys.executable, "-c", "import unsloth"], (0,)),
}


def main(
    times: int = 5,
    training: Annotated[int, typer.Option(help="So many times what imports Unsloth.")] = 3,
    light: Annotated[bool, typer.Option("--light", help="Only what imports no PyTorch.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        env = {"TUNEBOOK_RUNS": folder, "UNSLOTH_FORCE_CPU": "1"}
        for commands, n in ((COMMANDS, times), *(() if light else ((TORCH, times), (TRAINING, training)))):
            sides = {
                name: (lambda command=command, ok=ok: common.measured(command, ok, **env))
                for name, (command, ok) in commands.items()
            }
            for name, runs in common.by_turns(sides, n).items():
                found[name] = {
                    key: common.spread([run[key] for run in runs]) for key in ("wall_s", "cpu_s", "peak_gb")
                }
            common.write(
                out,
                {"times": times, "times_training": 0 if light else training, "commands": found},
                ("typer", "transformers", "trl", "unsloth", "torch"),
            )
    print("| what | seconds | of processor | memory |\n|---|---|---|---|")
    for name, f in found.items():
        print(
            f"| {name} | {f['wall_s']['median']:.1f} | {f['cpu_s']['median']:.1f} | {f['peak_gb']['median']:.2f} GB |"
        )


if __name__ == "__main__":
    typer.run(main)

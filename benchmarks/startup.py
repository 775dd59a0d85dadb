"""How long a command takes before it does anything.

    uv run python benchmarks/startup.py --out benchmarks/records/startup.json

Help, a mistake in the recipe, an up-to-date stage, the first step of SFT. Each in a process of its own, by
turns with what a user would type instead: `trl --help`, and the imports that a stage would pay for if they
stood at the top of the package.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import common
import typer

TUNEBOOK = [sys.executable, "-m", "tunebook"]
TRL = [sys.executable, "-c", "from trl.cli import main; main()"]
SMALL = ["--set", "data.sources.0.train=60", "--set", "data.sources.0.val=6"]
SMALL += ["--set", "data.sources.0.test=6"]
ONE_STEP = ["--set", "sft.max_steps=1", "--set", "sft.eval_strategy=no"]


@dataclass(frozen=True)
class Command:
    name: str
    words: list[str]
    ok: tuple[int, ...] = (0,)
    """The exit codes that it should end with."""


LIGHT = [
    Command("tunebook --help", [*TUNEBOOK, "--help"]),
    Command("a mistake in the recipe", [*TUNEBOOK, "sft", "--set", "sft.learning_rat=1"], (2,)),
    Command("import tunebook", [sys.executable, "-c", "import tunebook"]),
    Command("tunebook prepare", [*TUNEBOOK, "prepare", "--force", *SMALL]),
    Command("tunebook prepare, up to date", [*TUNEBOOK, "prepare", *SMALL]),
]
"""What imports no PyTorch."""

TORCH = [
    Command("trl --help", [*TRL, "--help"]),
    Command("a mistake given to trl", [*TRL, "sft", "--learning_rat", "1"], (1, 2)),
]

TRAINING = [
    Command("tunebook sft, one step", [*TUNEBOOK, "sft", "--force", *SMALL, *ONE_STEP]),
    Command("import unsloth", [sys.executable, "-c", "import unsloth"]),
]


def side(command: Command, env: dict[str, str]) -> Callable[[], dict[str, Any]]:
    return lambda: common.measured(command.words, command.ok, **env)


def main(
    times: int = 5,
    training: Annotated[int, typer.Option(help="So many times what imports Unsloth.")] = 3,
    light: Annotated[bool, typer.Option("--light", help="Only what imports no PyTorch.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
) -> None:
    groups = [(LIGHT, times)]
    if not light:
        groups += [(TORCH, times), (TRAINING, training)]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        env = {"TUNEBOOK_RUNS": folder, "UNSLOTH_FORCE_CPU": "1"}
        for commands, n in groups:
            sides = {command.name: side(command, env) for command in commands}
            for name, runs in common.by_turns(sides, n).items():
                results[name] = {}
                for key in ("wall_s", "cpu_s", "peak_gb"):
                    results[name][key] = common.spread([run[key] for run in runs])
            # Written after each group: the last one takes minutes.
            record = {"times": times, "times_training": 0 if light else training, "commands": results}
            common.write(out, record, ("typer", "transformers", "trl", "unsloth", "torch"))
    print("| what | seconds | of processor | memory |\n|---|---|---|---|")
    for name, result in results.items():
        wall, cpu, peak = (result[key]["median"] for key in ("wall_s", "cpu_s", "peak_gb"))
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {peak:.2f} GB |")


if __name__ == "__main__":
    typer.run(main)

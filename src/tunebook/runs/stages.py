"""The stages: one table that the command line, the pipeline, the run folder and the reports read.

A new trainer is one file in `training/`, one section of the recipe, one notebook and one row here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunebook.recipe.sections import Recipe


@dataclass(frozen=True)
class StageSpec:
    """What is known of a stage before it runs."""

    name: str
    """Its folder in a run folder."""
    command: str
    """`uv run tunebook <command>` runs it."""
    function: str
    """The function that runs it, as `module:name`: imported only when it is called."""
    folder: str = ""
    """The function that returns its `Stage`, as `module:name`. Only of a stage with a notebook."""
    notebook: str = ""
    """The notebook by which `tunebook run` runs it, without `.ipynb`."""
    help: str = ""
    """The help of its command. Only of a stage that trains: the other commands are written in `cli.py`."""
    needs: tuple[str, ...] = ()
    """The stages whose results it reads."""
    decides: tuple[str, ...] = ()
    """The recipe's sections that its result depends on, and no earlier stage's."""
    inside: tuple[str, ...] = ()
    """What the folders in its folder stand for, level by level: a model, a task, a target."""
    has_rounds: bool = False
    """Whether it is repeated in each round of iterated DPO, as `dpo`, `dpo-2`, ..."""
    trains: bool = False
    """Whether it leaves an adapter."""

    def run(self, recipe: Recipe, **options: Any) -> dict[str, Any]:
        """Call its function; returns the stage's record."""
        function: Callable[..., dict[str, Any]] = pkgutil.resolve_name(self.function)
        return function(recipe, **options)


_SPECS = (
    StageSpec(
        name="clean",
        command="clean",
        function="tunebook.data.clean:clean",
    ),
    StageSpec(
        name="data",
        command="prepare",
        function="tunebook.data.prepare:prepare",
        folder="tunebook.data.prepare:data_stage",
        notebook="01_data_prep",
        decides=("data", "seed", "clean"),
    ),
    StageSpec(
        name="sft",
        command="sft",
        function="tunebook.training.sft:sft",
        folder="tunebook.training.sft:sft_stage",
        notebook="02_sft",
        help="Supervised fine-tuning; prepares the data first where it is missing.",
        needs=("data",),
        decides=("model", "lora", "sft"),
        trains=True,
    ),
    StageSpec(
        name="pairs",
        command="pairs",
        function="tunebook.pairs.pairs:pairs",
        folder="tunebook.pairs.pairs:pairs_stage",
        notebook="03_dpo_pairs",
        needs=("data", "sft"),
        decides=("pairs",),
        has_rounds=True,
    ),
    StageSpec(
        name="dpo",
        command="dpo",
        function="tunebook.training.dpo:dpo",
        folder="tunebook.training.dpo:dpo_stage",
        notebook="04_dpo",
        help="Direct preference optimisation, from the SFT adapter and with it as the reference.",
        needs=("pairs", "sft"),
        decides=("dpo",),
        has_rounds=True,
        trains=True,
    ),
    StageSpec(
        name="eval",
        command="evaluate",
        function="tunebook.evaluation.evaluate:evaluate",
        folder="tunebook.evaluation.evaluate:eval_stage",
        notebook="05_evaluate",
        needs=("data",),
        decides=("evaluate",),
        inside=("model",),
    ),
    StageSpec(
        name="export",
        command="export",
        function="tunebook.export.export:export",
        decides=("export",),
        inside=("target",),
    ),
    StageSpec(
        name="bench",
        command="bench",
        function="tunebook.evaluation.benchmarks:bench",
        inside=("model", "task"),
    ),
)

STAGES = {spec.name: spec for spec in _SPECS}
"""The stages by name, in the order in which they run."""


class FolderName(NamedTuple):
    """What the path of a stage's folder below the run folder says."""

    spec: StageSpec
    round: int
    inside: tuple[str, ...]
    """`("sft", "gsm8k")` of `bench/sft/gsm8k`."""


def parse_name(name: str) -> FolderName | None:
    """The stage of a folder such as `sft`, `dpo-2` or `eval/base`; None for what is no stage's folder."""
    folder, *inside = name.split("/")
    stem, _, number = folder.partition("-")
    spec = STAGES.get(stem)
    if spec is None or len(inside) != len(spec.inside) or not (number or "1").isdecimal():
        return None
    return FolderName(spec, int(number or "1"), tuple(inside))


def round_name(name: str, number: int) -> str:
    """The name of a folder, command or notebook in a round of iterated DPO: `dpo`, `dpo-2`, `dpo-3`, ..."""
    return name if number == 1 else f"{name}-{number}"


def policy_name(number: int) -> str:
    """The stage whose model a round of pairs and DPO starts from: `sft`, then the round before."""
    return "sft" if number == 1 else round_name("dpo", number - 1)


def model_names(recipe: Recipe) -> list[str]:
    """What can be asked: `base`, `sft`, `dpo` and the later rounds of the recipe or the run folder."""
    names = ["base"]
    for spec in STAGES.values():
        if not spec.trains:
            continue
        rounds = 1
        if spec.has_rounds:
            trained_rounds = len(list(recipe.run_dir.glob(f"{spec.name}*/adapter")))
            rounds = max(recipe.pairs.rounds, trained_rounds)
        for number in range(1, rounds + 1):
            names.append(round_name(spec.name, number))
    return names


def trained_models(recipe: Recipe) -> list[str]:
    """What can be asked now: `base` and what has an adapter."""
    names = []
    for name in model_names(recipe):
        if name == "base" or (recipe.run_dir / name / "adapter").exists():
            names.append(name)
    return names


def training_behind(model: str) -> list[str]:
    """The trained stages that a model went through, the first one first: `["sft", "dpo"]` for `dpo-2`."""
    parsed = parse_name(model)
    if parsed is None or not parsed.spec.trains:
        return []
    names = []
    for name in parsed.spec.needs:
        names += training_behind(name)
    return [*names, parsed.spec.name]

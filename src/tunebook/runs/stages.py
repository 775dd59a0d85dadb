"""The stages: one table that the command line, the pipeline, the run folder and the reports read.

A new trainer is one file in `training/`, one section of the recipe, one notebook and one row here.
"""

from __future__ import annotations

import itertools
import pkgutil
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from tunebook.recipe.sections import Recipe, StageName


@dataclass(frozen=True)
class StageSpec:
    """What is known of a stage before it runs."""

    name: str
    """Its folder in a run folder."""
    command: str
    """`uv run tunebook <command>` runs it."""
    module: str
    """Where it lies: its function has the name of its command, that of its folder is `<name>_stage`."""
    notebook: str = ""
    """The notebook by which `tunebook run` runs it, without `.ipynb`."""
    help: str = ""
    """The help of its command. Only of one that trains: the other commands are written in `commands/`."""
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

    @property
    def function(self) -> str:
        """The function in its module that runs it; of `dpo --control` it is `dpo`."""
        return self.command.partition(" ")[0]

    def run(self, recipe: Recipe, **options: Any) -> dict[str, Any]:
        """Call the function that runs it; returns the stage's record."""
        function = pkgutil.resolve_name(f"{self.module}:{self.function}")
        record: dict[str, Any] = function(recipe, **options)
        return record

    def folder(self, recipe: Recipe, *which: Any) -> Any:
        """Its `Stage` in the run of a recipe; `which` is a round, a model, a task where it has one."""
        # Imported only now: the table itself must load nothing heavy and look into no higher room.
        function = f"{self.name.replace('-', '_')}_stage"
        return pkgutil.resolve_name(f"{self.module}:{function}")(recipe, *which)


CONTROL = "dpo-control"
"""What DPO is held against: trained on the likelihood of the same chosen answers alone."""

# In the order in which they run.
_SPECS = (
    StageSpec(name="clean", command="clean", module="tunebook.data.clean"),
    # The base model's right answers, sampled before data are prepared (`data.own_answers`); no command.
    StageSpec(name="own-answers", command="own_answers", module="tunebook.data.own_answers"),
    StageSpec(
        name="data",
        command="prepare",
        module="tunebook.data.prepare",
        notebook="01_data_prep",
        decides=("data", "seed", "clean"),
    ),
    StageSpec(
        name="sft",
        command="sft",
        module="tunebook.training.sft",
        notebook="02_sft",
        help="Supervised fine-tuning; prepares the data first where it is missing.",
        needs=("data",),
        decides=("model", "lora", "sft"),
        trains=True,
    ),
    # What `dpo.start` names; it is copied before pairs or DPO need it, and has no command.
    StageSpec(name="start", command="start", module="tunebook.models.start", decides=("model",), trains=True),
    StageSpec(
        name="pairs",
        command="pairs",
        module="tunebook.pairs.pairs",
        notebook="03_dpo_pairs",
        needs=("data", "sft"),
        decides=("pairs",),
        has_rounds=True,
    ),
    # Before DPO in the table, so that DPO's own adapter stays the last that is trained.
    StageSpec(
        name=CONTROL,
        command="dpo --control",
        module="tunebook.training.dpo",
        needs=("pairs", "sft"),
        # Its section is made of DPO's, which DPO's own stage records.
        trains=True,
    ),
    StageSpec(
        name="dpo",
        command="dpo",
        module="tunebook.training.dpo",
        notebook="04_dpo",
        help="Direct preference optimisation; the model that it starts from is the reference.",
        needs=("pairs", "sft"),
        decides=("dpo",),
        has_rounds=True,
        trains=True,
    ),
    StageSpec(
        name="eval",
        command="evaluate",
        module="tunebook.evaluation.evaluate",
        notebook="05_evaluate",
        needs=("data",),
        decides=("evaluate",),
        inside=("model",),
    ),
    StageSpec(
        name="export",
        command="export",
        module="tunebook.export.export",
        decides=("export",),
        inside=("target",),
    ),
    StageSpec(
        name="bench", command="bench", module="tunebook.evaluation.benchmarks", inside=("model", "task")
    ),
)
STAGES = {spec.name: spec for spec in _SPECS}


class FolderName(NamedTuple):
    """What the path of a stage's folder below the run folder says."""

    spec: StageSpec
    round: int
    inside: tuple[str, ...]
    """`("sft", "gsm8k")` of `bench/sft/gsm8k`."""


def parse_name(name: str) -> FolderName | None:
    """The stage of a folder such as `sft`, `dpo-2` or `eval/base`; None for what is no stage's folder."""
    # `bench/dpo-2/gsm8k`: the round of a folder inside is the model's, not the stage's.
    folder, *inside = name.split("/")
    stem, _, number = folder.partition("-")
    if folder in STAGES:  # `dpo-control` is no round
        stem, number = folder, ""
    spec = STAGES.get(stem)
    if spec is None or len(inside) != len(spec.inside) or not (number or "1").isdecimal():
        return None
    return FolderName(spec, int(number or "1"), tuple(inside))


def round_name(name: str, number: int) -> str:
    """The name of a folder, command or notebook in a round of iterated DPO: `dpo`, `dpo-2`, `dpo-3`, ..."""
    return name if number == 1 else f"{name}-{number}"


def asked_for(recipe: Recipe, spec: StageSpec) -> bool:
    """Whether a recipe asks for a stage: `recipe.stages` says what is trained (`recipe/asked.py`).

    Without data sources there are no rows to prepare.
    """
    if spec.name in get_args(StageName):
        return spec.name in recipe.stages
    if spec.name == "start":
        return policy_name(recipe, 1) == "start"
    if spec.name == CONTROL:
        return "dpo" in recipe.stages and bool(recipe.dpo.get("control"))
    if spec.name == "data":
        return bool(recipe.data.sources)
    return True


class Step(NamedTuple):
    """A stage of the table in one of its rounds."""

    spec: StageSpec
    round: int = 1

    @property
    def name(self) -> str:
        """Its name for `--from` and `--until`: `dpo-2`."""
        return round_name(self.spec.command, self.round)

    @property
    def words(self) -> str:
        """What follows `tunebook` on the command line: `dpo --round 2`."""
        return self.spec.command if self.round == 1 else f"{self.spec.command} --round {self.round}"


def steps(recipe: Recipe, all_stages: bool = False) -> dict[str, Step]:
    """What `tunebook run` does, in order, by name: what the recipe asks for, pairs and DPO once a round.

    Args:
        recipe: The recipe.
        all_stages: Also those that it does not ask for.
    """
    todo = []
    for spec in STAGES.values():
        if spec.notebook and (all_stages or asked_for(recipe, spec)):
            todo.append(spec)
    # Stages with rounds stand side by side in the table: each such group is repeated as a whole.
    repeated = []
    for has_rounds, group in itertools.groupby(todo, key=lambda spec: spec.has_rounds):
        specs = list(group)
        rounds = recipe.pairs.rounds if has_rounds else 1
        for number in range(1, rounds + 1):
            repeated += [Step(spec, number) for spec in specs]
    return {step.name: step for step in repeated}


def next_command(recipe: Recipe, name: str) -> str:
    """The command line after a step (`prepare`, `dpo-2`): the recipe's next one, at the end the report."""
    chain = steps(recipe)
    if name not in chain:  # run by hand, though the recipe does not ask for it
        chain = steps(recipe, all_stages=True)
    later = itertools.dropwhile(lambda step: step.name != name, chain.values())
    following = list(later)[1:]
    return recipe.command(following[0].words if following else "report")


def policy_name(recipe: Recipe, number: int) -> str:
    """The model that a round of pairs and DPO starts from.

    The first round: `sft` where the recipe asks for SFT, `base` where it does not, `start` for what
    `dpo.start` names. Later ones: the round before.
    """
    if number > 1:
        return round_name("dpo", number - 1)
    start = recipe.dpo.get("start")
    if start is None:
        return "sft" if "sft" in recipe.stages else "base"
    return start if start in ("sft", "base") else "start"


def model_names(recipe: Recipe) -> list[str]:
    """What can be asked: `base`, and what the recipe asks for or the run folder has: `sft`, `dpo`, ..."""
    names = ["base"]
    for spec in STAGES.values():
        if not spec.trains:
            continue
        rounds = 0
        if asked_for(recipe, spec):
            rounds = recipe.pairs.rounds if spec.has_rounds else 1
        # A run may have been trained further than the recipe asks for now.
        trained = [parse_name(path.parent.name) for path in recipe.run_dir.glob(f"{spec.name}*/adapter")]
        rounds = max(rounds, sum(parsed is not None and parsed.spec is spec for parsed in trained))
        for number in range(1, rounds + 1):
            names.append(round_name(spec.name, number))
    return names


def trained_models(recipe: Recipe) -> list[str]:
    """What can be asked now: `base` and what has an adapter."""
    has_adapter = [name for name in model_names(recipe) if (recipe.run_dir / name / "adapter").exists()]
    return ["base", *has_adapter]


def training_behind(model: str) -> list[str]:
    """The trained stages that a model went through, the first one first: `["sft", "dpo"]` for `dpo-2`."""
    parsed = parse_name(model)
    if parsed is None or not parsed.spec.trains:
        return []
    # From the model back through what it was trained on; stages that do not train are passed over.
    names = []
    for name in parsed.spec.needs:
        names += training_behind(name)
    return [*names, parsed.spec.name]

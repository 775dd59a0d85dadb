"""`tunebook pairs`: preference pairs, each side checked.

    uv run tunebook pairs --recipe smollm2-math --set pairs.samples=8

`on_policy`: several answers are sampled for each training prompt; chosen is one that is verified right,
rejected one that is verified wrong. `injected_error`: the model is asked for a flawed solution, chosen is the
reference. `dataset`: an existing preference set. Whatever the method, one output format.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tunebook.checkers.check import Check
from tunebook.checkers.judge import Judge
from tunebook.checkers.maths import verifier
from tunebook.data import aside
from tunebook.data.files import content_hash, located
from tunebook.data.prepare import data_stage, prepare
from tunebook.data.rows import Reject, hash_fraction
from tunebook.data.storage import training_rows, write_parquet, write_quarantine
from tunebook.data.tokens import open_tokenizer
from tunebook.models import backend
from tunebook.models.start import start, start_stage
from tunebook.pairs.existing import dataset
from tunebook.pairs.injected_error import injected_error
from tunebook.pairs.on_policy import on_policy
from tunebook.pairs.pair import COLUMNS, Pair, question_key
from tunebook.pairs.shortcuts import format_only, shortcut_accuracy
from tunebook.pairs.summary import remarks
from tunebook.pairs.work import Source, Work, engine_of
from tunebook.recipe.errors import UserError, shorten
from tunebook.recipe.overrides import switch
from tunebook.recipe.sections import PACE, PairsConfig, Recipe
from tunebook.runs.files import file_hash
from tunebook.runs.stage import Stage, finished_key
from tunebook.runs.stages import policy_name, round_name, trained_models

METHODS = {"on_policy": on_policy, "injected_error": injected_error, "dataset": dataset}
"""The methods of `pairs.methods`. Each gets its `Work` and returns its pairs."""


def pairs(recipe: Recipe, number: int = 1, force: bool = False) -> dict[str, Any]:
    """Make, check and write `pairs/{train,val}.parquet` (`pairs-2/`, ... in a later round).

    Answers are kept as they come and each has its own seed: an interrupted run asks nothing twice and ends
    with the same pairs. Prompts come from the training split alone.

    Returns:
        The stage's record.

    Raises UserError when the model to sample from is missing, when a server does not answer, and when nothing
    gives a pair.
    """
    stage = pairs_stage(recipe, number)
    force = switch("force", force)
    if stage.await_rank_0() or stage.skip(force):
        return stage.result
    judge = ranking_judge(recipe)
    if _uses_model(recipe) or _compares(recipe, number) or (judge and judge.config.model):
        backend.backend()  # Unsloth comes before whatever imports transformers
    if recipe.data.sources:
        prepare(recipe)
    start(recipe)
    tokenizer = open_tokenizer(recipe.model)

    def count_tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"]) + 1  # the end of the turn

    rows = [] if _only_existing(recipe) else _rows(recipe, number)
    engine = engine_of(recipe, number, rows)
    policy = policy_name(recipe, number)

    def open_policy() -> Source:
        return engine.open(policy)

    with stage.open(resume=not force) as folder, engine:
        depends_on = _answers_depend_on(stage) + engine.depends_on
        check = Check(recipe.check)
        work = Work(recipe, rows, folder, open_policy, count_tokens, number, depends_on, check, judge)
        all_pairs = []
        for method in recipe.pairs.methods:
            all_pairs += METHODS[method](work)
        write_quarantine(work.rejects, folder / "quarantine.jsonl")
        if _only_existing(recipe):
            example = _why_aside(work.rejects, folder / "quarantine.jsonl")
            reasons = Counter(reject.reason for reject in work.rejects)
            aside.check_share(reasons, len(all_pairs), recipe.data.max_aside, example)
        if not all_pairs:
            raise UserError(f"nothing gave a pair{_why_none(work.record)}")
        split = _split(all_pairs, recipe.pairs.val)
        columns = dict(COLUMNS)
        if any(pair["images"] for pair in all_pairs):
            columns["images"] = "files"
        for name, part in split.items():
            write_parquet(part, folder / f"{name}.parquet", **columns)
        facts = {**_facts(all_pairs, split), **engine.record(policy)}
        stage.record = {**facts, "verifier": verifier(), **work.record}
    return stage.result


def _facts(all_pairs: list[Pair], split: dict[str, list[Pair]]) -> dict[str, Any]:
    """What the stage records of its pairs: counts, lengths, and whether a shortcut tells the sides apart."""
    chosen = [pair["chosen_tokens"] for pair in all_pairs]
    rejected = [pair["rejected_tokens"] for pair in all_pairs]
    return {
        "rows": {name: len(part) for name, part in split.items()},
        "strategies": dict(Counter(pair["strategy"] for pair in all_pairs)),
        "tokens": {"chosen": sum(chosen) / len(chosen), "rejected": sum(rejected) / len(rejected)},
        "length_only_accuracy": shortcut_accuracy(list(zip(chosen, rejected, strict=True))),
        "format_only_accuracy": format_only(all_pairs),
    }


def _split(all_pairs: list[Pair], val: float) -> dict[str, list[Pair]]:
    """By prompt: a hash of the first pair's id decides where all pairs of a prompt go."""
    # A prompt on both sides would be trained on and evaluated.
    prompts: dict[str, list[Pair]] = {}
    for pair in all_pairs:
        prompts.setdefault(question_key(pair), []).append(pair)
    val_prompts = set()
    for key, of_prompt in prompts.items():
        if hash_fraction(f"pairs/{of_prompt[0]['source_id']}") < val:
            val_prompts.add(key)
    if len(val_prompts) == len(prompts):  # of a handful, all to train
        val_prompts = set()
    split: dict[str, list[Pair]] = {"train": [], "val": []}
    for pair in all_pairs:
        split["val" if question_key(pair) in val_prompts else "train"].append(pair)
    return split


def _why_aside(rejects: list[Reject], quarantine: Path) -> str:
    """The reasons for which rows of an existing set were put aside, one of them, and where all are."""
    counts = Counter(reject.reason for reject in rejects).most_common()
    if not counts:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
    first = next(reject for reject in rejects if reject.reason == counts[0][0])
    return f"{reasons} (the first, {first.source_id}: {shorten(first.detail, 200)}). All are in {quarantine}"


def _why_none(record: dict[str, Any]) -> str:
    """What became of the samples, and what helps; of an existing set its rejects are in the quarantine."""
    counts: dict[str, int] = record.get("samples") or {}
    if not counts:
        return "; look at quarantine.jsonl"
    remedies = {
        "cut off": "raise pairs.max_new_tokens, or train SFT longer",
        "broken": "train SFT longer: answers do not end as those of the rows do",
        "too long": "raise model.max_seq_length",
        "no score": "the checker says nothing of them",
        "judged": "the judge prefers none of them, or pairs.max_length_ratio is too low",
    }
    samples = sum(counts.values())
    most = max(counts, key=lambda verdict: counts[verdict])
    # A third of them is enough to look there first: more samples would end no better.
    for verdict in ("broken", "cut off"):
        if 3 * counts.get(verdict, 0) >= samples:
            most = verdict
    remedy = remedies.get(most, "raise pairs.temperature, pairs.samples or pairs.prompts")
    names = {"broken": "broken (empty, an error text, or without a final answer in the form of the rows)"}
    verdicts = ", ".join(f"{n} are {names.get(verdict, verdict)}" for verdict, n in counts.items())
    return f": of {samples} samples {verdicts}; {remedy}"


def existing_pairs(recipe: Recipe, number: int = 1) -> None:
    """Before DPO: make the pairs of an existing set where they are missing, as SFT prepares its data.

    Sampling takes long and is not started unasked.
    """
    if not _only_existing(recipe):
        return
    stage = pairs_stage(recipe, number)
    if not stage.done and not stage.await_rank_0():
        backend.backend()  # what comes after it in this process wants it first
        record = pairs(recipe, number)
        # `tunebook pairs` would say it, and nobody has called that.
        for line in remarks(record, stage.name):
            print(line)


def pairs_stage(recipe: Recipe, number: int = 1) -> Stage:
    """The stage that `pairs` fills in a round. Raises UserError when the model to sample from is missing."""
    config = recipe.pairs
    # How a server is reached, and what DPO does with the pairs, makes no other pairs.
    unused: Any = {"rounds": True, "compare": True, "server": PACE}
    # Without what came later, where it is not used: pairs from before it stay as they are.
    for name in ("top_p", "top_k", "rejected", "first_pit"):
        if getattr(config, name) == PairsConfig.model_fields[name].default:
            unused[name] = True
    settings = {
        "pairs": config.model_dump(mode="json", exclude=unused),
        "seed": recipe.seed,
        "round": number,
        "verifier": verifier(),
        **Check(recipe.check).settings,
    }
    # What the pairs are made from: the rows, the model, prompt files and an existing set.
    inputs = {"data": data_stage(recipe).key}
    if _uses_model(recipe):
        policy = policy_name(recipe, number)
        if policy == "base":
            settings["model"] = recipe.model.model_dump(mode="json")
        elif policy == "start":
            inputs["start"] = start_stage(recipe).key
        else:
            inputs[policy] = finished_key(recipe, policy)
    files = []
    if "injected_error" in config.methods:
        files += [f"prompt/{strategy}.txt" for strategy in config.strategies]
    for name in files:
        inputs[name] = file_hash(config.find_file(name))
    inputs |= Check(recipe.check).inputs
    judge = ranking_judge(recipe)
    if judge:
        settings["judge"] = judge.settings
    if config.dataset:
        content = content_hash(located(config, config.dataset), "pairs.dataset")
        # A hub id has no content that could be read here.
        if content:
            inputs[config.dataset] = content
    return Stage(recipe, round_name("pairs", number), settings, inputs)


def ranking_judge(recipe: Recipe) -> Judge | None:
    """The judge that ranks samples: that of a recipe without a `check`.

    Raises UserError for a method that it cannot serve.
    """
    if recipe.judge is None or recipe.check is not None or _only_existing(recipe):
        return None
    if "injected_error" in recipe.pairs.methods:
        raise UserError(
            "pairs.methods: a judge ranks samples of one model (on_policy); injected_error needs a `check`"
        )
    if recipe.pairs.first_pit:
        raise UserError("pairs.first_pit needs right and wrong answers, which a judge does not tell apart")
    return Judge(recipe, recipe.judge)


def _answers_depend_on(stage: Stage) -> list[Any]:
    """What the answers of a stage depend on beside their prompts and sampling, and its other settings do not.

    The data's key stands for the rows that answers are checked against.
    """
    inputs = {name: key for name, key in stage.inputs.items() if not name.startswith("prompt/")}
    settings = stage.settings
    of_checks = settings.get("check"), verifier()
    parts = [inputs, stage.input_hashes(), settings.get("model"), settings["pairs"]["server"], of_checks]
    # What a judge ranks has no verdict of a checker.
    return [*parts, "ranked"] if "judge" in settings else parts


def _uses_model(recipe: Recipe) -> bool:
    return recipe.pairs.server is None and not _only_existing(recipe)


def _compares(recipe: Recipe, number: int) -> bool:
    """Whether a server may have to be compared with the model here."""
    server = recipe.pairs.server
    claims = server is not None and server.same_model is not False and "on_policy" in recipe.pairs.methods
    return claims and policy_name(recipe, number) in trained_models(recipe)


def _only_existing(recipe: Recipe) -> bool:
    return set(recipe.pairs.methods) == {"dataset"}


def _rows(recipe: Recipe, number: int) -> list[dict[str, Any]]:
    """The training rows of a round: the next `pairs.prompts`, from the start again when they are used up."""
    check = Check(recipe.check)
    is_ranked = ranking_judge(recipe) is not None
    rows = []
    for row in training_rows(recipe, "pairs"):
        # A row with tools is no question that can be asked as text.
        if (is_ranked or check.can_judge(row)) and not row.get("chat"):
            rows.append(row)
    if not rows:
        raise UserError(
            "no training row has an answer to check against: give rows an `answer`, name another checker "
            "(such as `check: json` or `check: my_checks.py:function`) or a `judge`, "
            "or use pairs.methods=[dataset]"
        )
    count = min(recipe.pairs.prompts or len(rows), len(rows))
    return [rows[i % len(rows)] for i in range((number - 1) * count, number * count)]

"""`tunebook pairs`: preference pairs, each side checked.

    uv run tunebook pairs --recipe smollm2-math --set pairs.samples=8

`on_policy`: several answers are sampled for each training prompt; chosen is one that is verified right, rejected one
that is verified wrong. `injected_error`: the model is asked for a flawed solution, chosen is the reference.
`dataset`: an existing preference set. Whatever the method, one output format.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from tunebook.checkers.maths import verifier
from tunebook.data.checks import without
from tunebook.data.file_tokenizer import open_tokenizer
from tunebook.data.prepare import data_stage, prepare
from tunebook.data.records import is_file
from tunebook.data.rows import share
from tunebook.data.storage import training_rows, write_parquet, write_quarantine
from tunebook.models import backend
from tunebook.models.tokenizer import control_tokens
from tunebook.pairs import existing
from tunebook.pairs.existing import dataset
from tunebook.pairs.injected_error import injected_error
from tunebook.pairs.on_policy import on_policy
from tunebook.pairs.pair import COLUMNS, Pair
from tunebook.pairs.shortcuts import format_only, told_apart
from tunebook.pairs.work import Work, _opener
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import find_file
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import file_hash
from tunebook.runs.stage import Stage, finished_key
from tunebook.runs.stages import policy_name, round_name


def pairs(recipe: Recipe, number: int = 1, force: bool = False) -> dict[str, Any]:
    """Make, check and write `pairs/{train,val}.parquet` (`pairs-2/`, ... in a later round); returns the stage's record.

    Answers are kept as they come and each has its own seed: an interrupted run asks nothing twice and ends with the same
    pairs. Prompts come from the training split alone.

    Raises UserError when the model to sample from is missing, a server does not answer, or nothing gives a pair.
    """
    stage = pairs_stage(recipe, number)
    if stage.await_rank_0() or stage.skip(force):
        return stage.result
    if _uses_model(recipe):
        backend.backend()  # Unsloth comes before whatever imports transformers
    prepare(recipe)
    tokenizer = open_tokenizer(recipe.model)

    def count_tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"]) + 1  # the end of the turn

    with stage.open(resume=not force) as folder:
        asked = [] if recipe.pairs.methods == ["dataset"] else _rows(recipe, number)
        work = Work(recipe, asked, folder, _opener(recipe, number), count_tokens, number)
        work.control = without(control_tokens(tokenizer))
        found = [pair for method in recipe.pairs.methods for pair in METHODS[method](work)]
        write_quarantine(work.rejects, folder / "quarantine.jsonl")
        if not found:
            raise UserError(f"nothing gave a pair{_why_none(work.record)}")
        split = _split(found, recipe.pairs.val)
        columns = COLUMNS | ({"images": "files"} if any(p["images"] for p in found) else {})
        for name, part in split.items():
            write_parquet(part, folder / f"{name}.parquet", **columns)
        stage.record = {
            "rows": {name: len(part) for name, part in split.items()},
            "strategies": dict(Counter(p["strategy"] for p in found)),
            "tokens": {
                side: sum(p[f"{side}_tokens"] for p in found) / len(found) for side in ("chosen", "rejected")
            },
            "length_only_accuracy": told_apart([(p["chosen_tokens"], p["rejected_tokens"]) for p in found]),
            "format_only_accuracy": format_only(found),
            "verifier": verifier(),
            **work.record,
        }
    return stage.result


def _split(found: list[Pair], val: float) -> dict[str, list[Pair]]:
    """By prompt: a hash of the first pair's id decides where all pairs of a prompt go."""
    first: dict[str, str] = {}
    ids = [first.setdefault(existing.asked(p), p["source_id"]) for p in found]
    drawn = {i for i in ids if share(f"pairs/{i}") < val}
    drawn = drawn if len(drawn) < len(set(ids)) else set()  # of a handful, all to train
    numbered = list(zip(ids, found, strict=True))
    return {
        "train": [p for i, p in numbered if i not in drawn],
        "val": [p for i, p in numbered if i in drawn],
    }


def _why_none(record: dict[str, Any]) -> str:
    """What became of the samples, and what helps; of an existing set its rejects are in the quarantine."""
    counts = record.get("samples") or {}
    if not counts:
        return "; look at quarantine.jsonl"
    helps = {
        "broken": "train SFT longer or raise pairs.max_new_tokens: they are cut off or without a box",
        "too long": "raise model.max_seq_length",
    }.get(
        max(counts, key=lambda kind: int(counts[kind])),
        "raise pairs.temperature, pairs.samples or pairs.prompts",
    )
    return f": of {sum(counts.values())} samples {', '.join(f'{n} are {kind}' for kind, n in counts.items())}; {helps}"


def existing_pairs(recipe: Recipe, number: int = 1) -> None:
    """Before DPO: make the pairs of an existing set where they are missing, as SFT prepares its data. Sampling takes long and is asked for."""
    if set(recipe.pairs.methods) == {"dataset"} and not pairs_stage(recipe, number).done:
        backend.backend()  # what comes after it in this process wants it first
        pairs(recipe, number)


def pairs_stage(recipe: Recipe, number: int = 1) -> Stage:
    """The stage that `pairs` fills in a round. Raises UserError when the model to sample from is missing."""
    config = recipe.pairs
    settings = {
        "pairs": config.model_dump(
            mode="json",
            exclude={
                "rounds": True,
                "compare": True,
                "server": {"concurrency", "timeout", "retries", "api_key_env"},
            },
        )
    }
    inputs = {"data": data_stage(recipe).key}
    if _uses_model(recipe):
        inputs[policy_name(number)] = finished_key(recipe, policy_name(number))
    files = (
        [f"prompt/{strategy}.txt" for strategy in config.strategies]
        if "injected_error" in config.methods
        else []
    )
    files += [config.dataset] if config.dataset and is_file(config.dataset) else []
    inputs |= {name: file_hash(find_file(name)) for name in files}
    return Stage(
        recipe,
        round_name("pairs", number),
        {**settings, "seed": recipe.seed, "round": number, "verifier": verifier()},
        inputs,
    )


METHODS = {"on_policy": on_policy, "injected_error": injected_error, "dataset": dataset}


def _uses_model(recipe: Recipe) -> bool:
    return recipe.pairs.server is None and set(recipe.pairs.methods) != {"dataset"}


def _rows(recipe: Recipe, number: int) -> list[dict[str, Any]]:
    """The training rows of a round: the next `pairs.prompts`, from the start again when they are used up."""
    rows = [row for row in training_rows(recipe, "pairs") if row["gold"] is not None]
    if not rows:
        raise UserError(
            "no training row has an answer to check against: give rows an `answer`, or use pairs.methods=[dataset]"
        )
    wanted = min(recipe.pairs.prompts or len(rows), len(rows))
    return [rows[i % len(rows)] for i in range((number - 1) * wanted, number * wanted)]

"""`tunebook evaluate`: every stage's model answers the same held-out items; accuracy with n and interval.

uv run tunebook evaluate --recipe smollm2-math --set evaluate.split=val
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunebook.checkers.maths import equal, verifier, verify
from tunebook.data.images import instead
from tunebook.data.prepare import data_stage, prepare
from tunebook.data.rows import evenly, images_of
from tunebook.data.storage import load
from tunebook.evaluation.statistics import compare, compared_steps, wilson
from tunebook.generation.answers import Answer, Sampling, repeats
from tunebook.generation.generate import answer_file, generate, read_records
from tunebook.generation.local import Local, local
from tunebook.models import backend
from tunebook.models.adapters import load_stages
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json, write_json
from tunebook.runs.stage import Stage, adapter_key, command
from tunebook.runs.stages import trained_models


def evaluate(
    recipe: Recipe, only: Iterable[str] | None = None, force: bool = False
) -> dict[str, dict[str, Any]]:
    """Answer the held-out items with each stage's model; returns {stage: summary}.

    `only` defaults to `base` and the stages that are trained. Items and batches are the same for every stage; answers are
    kept in `eval/<stage>/predictions.jsonl` as they come, so an interrupted evaluation goes on. The base model is
    loaded once.

    Raises UserError for a stage that is not trained, naming the command that trains it.
    """
    wanted = list(only or trained_models(recipe))
    todo = {name: eval_stage(recipe, name) for name in wanted}
    missing = {name: stage for name, stage in todo.items() if force or not stage.done}
    if wanted == ["base"] and not only:
        print(f"Nothing is trained in {recipe.run_dir}: the base model alone is evaluated.")
    if missing:
        backend.backend()
        train = prepare(recipe)["fingerprints"]["train"]
        for name in missing:
            _refuse_learnt(recipe, name, train)
        items = _items(recipe)
        model, tokenizer = load_stages(recipe, missing)
        for name, stage in missing.items():
            adapter = None if name == "base" else name
            with stage.open(resume=not force) as folder:
                summary = summarise(_answer(recipe, name, local(model, tokenizer, adapter), items, folder))
                if recipe.evaluate.samples:
                    summary["sampled"] = _sample(
                        recipe, name, local(model, tokenizer, adapter), items, folder
                    )
                if recipe.evaluate.ablation and any(images_of(item) for item in items):
                    summary["images"] = _ablate(recipe, name, local(model, tokenizer, adapter), items, folder)
                if name != "base" and summary["repeating"] > 0.5:
                    print(
                        f"Warning: {summary['repeating']:.0%} of {name}'s answers repeat one piece of text to their end: it has collapsed"
                    )
                stage.record = {"summary": summary, "verifier": verifier()}
    results = {name: stage.result["summary"] for name, stage in todo.items()}
    write_json(
        recipe.run_dir / "eval" / "summary.json",
        {"split": recipe.evaluate.split, "stages": results, "comparisons": comparisons(todo)},
    )
    return results


def _refuse_learnt(recipe: Recipe, name: str, train: str) -> None:
    """Raises UserError for a model that was trained on other rows than the data's train split holds now: held-out rows may be among them."""
    learnt = read_json(recipe.run_dir / name / "stage.json").get("learnt", [])
    if set(learnt) - {train}:
        raise UserError(
            f"{name} was trained on other rows than the train split of the recipe's data holds now, so that a held-out row may be one that it has "
            f"learnt: give `data` and `seed` as they were, or train it again (`{command(recipe, name)}`), or choose another --run"
        )


def comparisons(done: dict[str, Stage]) -> list[dict[str, Any]]:
    """Each stage against the one before it and the last against the first, item by item: `paired.compare` of each."""
    found = {name: read_records(stage.dir / "predictions.jsonl") for name, stage in done.items()}
    return compared_steps(
        {name: {p["index"]: p["correct"] for p in records} for name, records in found.items()}
    )


def answers(recipe: Recipe, only: Iterable[str], rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The same few rows (`prompt`, and `images` where they have some) answered by each stage's model, greedily and in one batch: a
    {stage: answer} for each."""
    wanted = list(only)
    for name in wanted:
        eval_stage(recipe, name)  # refuses what is not trained
    backend.backend()
    model, tokenizer = load_stages(recipe, wanted)
    out: list[dict[str, str]] = [{} for _ in rows]
    asked, sampling = [row["prompt"] for row in rows], Sampling(recipe.evaluate.max_new_tokens, len(rows))
    for name in wanted:
        with local(model, tokenizer, None if name == "base" else name) as source:
            for found in generate(source, asked, sampling, [images_of(row) for row in rows], label=name):
                for i, answer in found.items():
                    out[i][name] = answer.text
    return out


def summarise(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and shares of a list of predictions, in all and by slice.

    The interval is Wilson's at 95%.
    """
    overall = _shares(predictions)
    names = sorted({p["slice"] for p in predictions if p["slice"]})
    return overall | {
        "slices": {name: _shares([p for p in predictions if p["slice"] == name]) for name in names}
    }


def eval_stage(recipe: Recipe, name: str) -> Stage:
    """The folder of one model's answers. Raises UserError when that model is not trained."""
    no_images = ["ablation"] if all(s.format == "geometry" for s in recipe.data.sources) else []
    settings = {
        "evaluate": recipe.evaluate.model_dump(
            mode="json",
            exclude={
                "gate",
                "benchmarks",
                *(() if recipe.evaluate.samples else ("samples", "temperature")),
                *no_images,
            },
        ),
        "model": recipe.model.model_dump(mode="json"),
        "verifier": verifier(),
    }
    return Stage(
        recipe,
        f"eval/{name}",
        settings,
        {"data": data_stage(recipe).key, "adapter": adapter_key(recipe, name)},
    )


def _items(recipe: Recipe) -> list[dict[str, Any]]:
    rows = [r for r in load(recipe, recipe.evaluate.split) if r["gold"] is not None]
    if not rows:
        raise UserError(
            f"the {recipe.evaluate.split} split has no row with an answer to check against: add a source that has (an `answer` column, "
            "or format gsm8k), or run `uv run tunebook bench`"
        )
    return evenly(rows, recipe.evaluate.limit)


def _answer(
    recipe: Recipe,
    name: str,
    source: AbstractContextManager[Local],
    items: list[dict[str, Any]],
    folder: Path,
) -> list[dict[str, Any]]:
    prompts: list[Messages] = [item["prompt"] for item in items]
    sampling = Sampling(recipe.evaluate.max_new_tokens, recipe.evaluate.batch_size)
    shown = [images_of(item) for item in items]
    return answer_file(
        folder / "predictions.jsonl",
        source,
        prompts,
        sampling,
        lambda i, a: _record(items[i], a),
        f"{name} answers",
        shown,
    )


def _ablate(
    recipe: Recipe,
    name: str,
    source: AbstractContextManager[Local],
    all_items: list[dict[str, Any]],
    folder: Path,
) -> dict[str, Any]:
    """Items answered again with a blank image and with another item's, against the answers with their own (`predictions.jsonl`)."""
    places = evenly([i for i, item in enumerate(all_items) if images_of(item)], recipe.evaluate.ablation)
    items = [all_items[place] for place in places]
    prompts: list[Messages] = [item["prompt"] for item in items]
    sampling = Sampling(recipe.evaluate.max_new_tokens, recipe.evaluate.batch_size)
    whole = read_records(folder / "predictions.jsonl")
    right = {"true": [whole[place]["correct"] for place in places]}
    with source as asked:
        for kind in ("blank", "swapped"):
            shown, path = (
                instead(kind, [item["images"] for item in items]),
                folder / f"predictions-{kind}.jsonl",
            )
            given = contextlib.nullcontext(asked), prompts, sampling
            found = answer_file(
                path, *given, lambda i, a: _record(items[i], a), f"{name}, {kind} image", shown
            )
            right[kind] = [p["correct"] for p in found]
    return {kind: sum(marks) / len(marks) for kind, marks in right.items()} | {
        "gain": compare(right["blank"], right["true"])
    }


def _sample(
    recipe: Recipe,
    name: str,
    source: AbstractContextManager[Local],
    items: list[dict[str, Any]],
    folder: Path,
) -> dict[str, Any]:
    """`evaluate.samples` answers to each item; pass@1, pass@k and majority vote (Wang et al. 2022), ties by the first."""
    config, k = recipe.evaluate, recipe.evaluate.samples
    prompts: list[Messages] = [item["prompt"] for item in items for _ in range(k)]
    sampling = Sampling(
        config.max_new_tokens,
        config.batch_size,
        config.temperature,
        [recipe.seed + i for i in range(len(prompts))],
    )
    shown = [images_of(item) for item in items for _ in range(k)]
    found = answer_file(
        folder / "samples.jsonl",
        source,
        prompts,
        sampling,
        lambda i, a: _record(items[i // k], a),
        f"{name} samples",
        shown,
    )
    groups = [found[i : i + k] for i in range(0, len(found), k)]
    return {
        "k": k,
        "temperature": config.temperature,
        "pass@1": sum(p["correct"] for p in found) / len(found),
    } | {
        "pass@k": sum(any(p["correct"] for p in group) for group in groups) / len(groups),
        "majority": sum(_majority(group) for group in groups) / len(groups),
    }


def _majority(group: list[dict[str, Any]]) -> bool:
    votes: Counter[str] = Counter()
    for p in (p for p in group if p["parsed"]):
        votes[next((v for v in votes if equal(v, p["parsed"])), p["parsed"])] += 1
    best = votes.most_common(1)[0][0] if votes else ""
    return any(p["correct"] for p in group if p["parsed"] and equal(best, p["parsed"]))


def _record(item: dict[str, Any], answer: Answer) -> dict[str, Any]:
    # A number in an answer that was cut off is not its final answer.
    verdict = verify(answer.text, item["gold"], boxed_only=answer.truncated)
    kept = {k: item[k] for k in ("source_id", "slice", "group", "difficulty", "gold")}
    return {**kept, "prompt": item["prompt"][-1]["content"], "answer": answer.text, **asdict(verdict)} | {
        "tokens": answer.tokens,
        "truncated": answer.truncated,
    }


def _shares(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    n = len(predictions)
    right = sum(p["correct"] for p in predictions)
    return {
        "n": n,
        "correct": right,
        "accuracy": right / n,
        "interval": wilson(right, n),
        "boxed": sum(p["how"] == "boxed" for p in predictions) / n,
        "truncated": sum(p["truncated"] for p in predictions) / n,
        "no_answer": sum(p["how"] == "none" for p in predictions) / n,
        "mean_tokens": sum(p["tokens"] for p in predictions) / n,
        "repeating": sum(repeats(p.get("answer", "")) for p in predictions) / n,
    }

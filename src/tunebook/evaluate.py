"""`tunebook evaluate`: every stage's model answers the same held-out items; accuracy with n and interval.

uv run tunebook evaluate --recipe smollm2-math --set evaluate.split=val
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tunebook import models
from tunebook.data.prepare import data_stage, load, prepare
from tunebook.data.sources import Messages
from tunebook.generate import Answer, ask, generate
from tunebook.recipe import Recipe, UserError
from tunebook.run import Stage, finished_key, write_json
from tunebook.verify import verifier, verify

STAGES = ("base", "sft", "dpo")


def evaluate(recipe: Recipe, stages: Iterable[str] | None = None, force: bool = False) -> dict[str, dict[str, Any]]:
    """Answer the held-out items with each stage's model; returns {stage: summary}.

    `stages` defaults to `base` and those that are trained. Items and batches are the same for every stage; answers are
    kept in `eval/<stage>/predictions.jsonl` as they come, so an interrupted evaluation goes on. The base model is
    loaded once.

    Raises UserError for a stage that is not trained, naming the command that trains it.
    """
    wanted = list(stages or ["base", *(s for s in STAGES[1:] if (recipe.run_dir / s / "adapter").exists())])
    todo = {name: eval_stage(recipe, name) for name in wanted}
    missing = {name: stage for name, stage in todo.items() if force or not stage.done}
    if missing:
        models.backend()
        prepare(recipe)
        items = _items(recipe)
        model, tokenizer = _load(recipe, missing)
        for name, stage in missing.items():
            with stage.open(resume=not force) as folder, models.use_adapter(model, None if name == "base" else name) as active:
                _answer(recipe, name, active, tokenizer, items, folder / "predictions.jsonl")
                stage.record = {"summary": summarise(read_predictions(folder / "predictions.jsonl")), "verifier": verifier()}
    results = {name: stage.result["summary"] for name, stage in todo.items()}
    write_json(recipe.run_dir / "eval" / "summary.json", {"split": recipe.evaluate.split, "stages": results})
    return results


def answers(recipe: Recipe, stages: Iterable[str], prompts: list[Messages], max_new_tokens: int | None = None) -> list[dict[str, str]]:
    """The same prompts answered by each stage's model, one by one and greedily: a {stage: answer} for each."""
    wanted = list(stages)
    for name in wanted:
        eval_stage(recipe, name)  # refuses what is not trained
    models.backend()
    model, tokenizer = _load(recipe, wanted)
    out: list[dict[str, str]] = [{} for _ in prompts]
    for name in wanted:
        with models.use_adapter(model, None if name == "base" else name) as active:
            for row, prompt in zip(out, prompts, strict=True):
                row[name] = ask(active, tokenizer, prompt, max_new_tokens or recipe.evaluate.max_new_tokens)
    return out


COLUMNS = ("stage", "slice", "n", "accuracy (95% interval)", "boxed", "cut off", "no answer", "tokens")


def cells(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Stages as rows, overall first and then by slice: accuracy with its Wilson 95% interval, and what explains it."""
    rows = []
    for stage, summary in results.items():
        for name, s in {"all": summary, **summary["slices"]}.items():
            accuracy = f"{s['accuracy']:.1%} ({100 * s['interval'][0]:.1f} to {100 * s['interval'][1]:.1f})"
            shares = [f"{s[k]:.0%}" for k in ("boxed", "truncated", "no_answer")]
            rows.append((stage if name == "all" else "", name, str(s["n"]), accuracy, *shares, f"{s['mean_tokens']:.0f}"))
    return rows


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table for README and report."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [COLUMNS, ("---",) * len(COLUMNS), *cells(results)])


def summarise(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and shares of a list of predictions, in all and by slice.

    The interval is Wilson's (1927) score interval at 95%.
    """
    overall = _shares(predictions)
    names = sorted({p["slice"] for p in predictions if p["slice"]})
    return overall | {"slices": {name: _shares([p for p in predictions if p["slice"] == name]) for name in names}}


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The records of a file of answers, in the order of the items. A line cut short by a kill is left out."""
    records = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records[record["index"]] = record
    return [records[i] for i in sorted(records)]


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(*COLUMNS, title="held-out accuracy", box=box.SIMPLE)
    for row in cells(results):
        table.add_row(*row)
    Console().print(table)


def eval_stage(recipe: Recipe, name: str) -> Stage:
    """The folder of one model's answers. Raises UserError when that model is not trained."""
    if name not in STAGES:
        raise UserError(f"no stage {name!r}: choose from {', '.join(STAGES)}")
    key = "" if name == "base" else finished_key(recipe, name)
    settings = {
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        "model": recipe.model.model_dump(mode="json"),
        "verifier": verifier(),
    }
    return Stage(recipe, f"eval/{name}", settings, {"data": data_stage(recipe).key, "adapter": key})


def _load(recipe: Recipe, stages: Iterable[str]) -> tuple[Any, Any]:
    """The base model, once, with the adapters of the stages on it."""
    model, tokenizer = models.load(recipe)
    return models.load_adapters(model, {name: recipe.run_dir / name / "adapter" for name in stages if name != "base"}), tokenizer


def _items(recipe: Recipe) -> list[dict[str, Any]]:
    rows = [r for r in load(recipe, recipe.evaluate.split) if r["gold"] is not None]
    if not rows:
        raise UserError(f"the {recipe.evaluate.split} split has no row with an answer to check against")
    limit = min(recipe.evaluate.limit or len(rows), len(rows))
    return [rows[i * len(rows) // limit] for i in range(limit)]  # evenly from all of them: rows may be sorted by slice


def _answer(recipe: Recipe, name: str, model: Any, tokenizer: Any, items: list[dict[str, Any]], path: Path) -> None:
    """Append a record per item, a batch at a time; batches that are there already are not asked again."""
    settings = recipe.evaluate
    done = {record["index"] for record in read_predictions(path)}
    prompts: list[Messages] = [item["prompt"] for item in items]
    answers = generate(
        model, tokenizer, prompts, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size, skip=done, label=f"{name} answers"
    )
    with path.open("a", encoding="utf-8") as out:
        if done:
            out.write("\n")  # a kill may have cut the last line short
        for batch in answers:
            out.writelines(json.dumps(_record(i, items[i], answer)) + "\n" for i, answer in batch.items())
            out.flush()


def _record(index: int, item: dict[str, Any], answer: Answer) -> dict[str, Any]:
    # A number in an answer that was cut off is not its final answer.
    verdict = verify(answer.text, item["gold"], boxed_only=answer.truncated)
    kept = {k: item[k] for k in ("source_id", "slice", "group", "difficulty", "gold")}
    return {"index": index, **kept, "prompt": item["prompt"][-1]["content"], "answer": answer.text, **asdict(verdict)} | {
        "tokens": answer.tokens,
        "truncated": answer.truncated,
    }


def _shares(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    from scipy.stats import binomtest

    n = len(predictions)
    right = sum(p["correct"] for p in predictions)
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return {
        "n": n,
        "correct": right,
        "accuracy": right / n,
        "interval": [interval.low, interval.high],
        "boxed": sum(p["how"] == "boxed" for p in predictions) / n,
        "truncated": sum(p["truncated"] for p in predictions) / n,
        "no_answer": sum(p["how"] == "none" for p in predictions) / n,
        "mean_tokens": sum(p["tokens"] for p in predictions) / n,
    }

"""`tunebook evaluate`: every stage's model answers the same held-out items; accuracy with n and interval.

uv run tunebook evaluate --recipe smollm2-math --set evaluate.split=val
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunebook.checkers.check import Check
from tunebook.checkers.maths import verifier
from tunebook.data.prepare import data_stage, prepare
from tunebook.data.retention_items import retention_items
from tunebook.data.rows import evenly, images_of
from tunebook.evaluation.held_out import (
    ANSWERED,
    compare_losses,
    held_out_answers,
    measure_losses,
    summarise_losses,
)
from tunebook.evaluation.items import (
    Exam,
    Item,
    Prediction,
    answers_by_model,
    held_out_items,
    summarise,
    summarise_answers,
)
from tunebook.evaluation.retention import compare_retention, measure_retention, summarise_retention
from tunebook.evaluation.statistics import compared_steps, mark
from tunebook.evaluation.win_rates import win_rates
from tunebook.generation.engines import COMPARED, Engine, choose, warn_of_engines
from tunebook.generation.generate import read_records
from tunebook.generation.local import Local, local
from tunebook.models import backend
from tunebook.recipe.errors import UserError
from tunebook.recipe.overrides import switch
from tunebook.recipe.sections import PACE, Recipe
from tunebook.runs.changed import say_changed
from tunebook.runs.files import fingerprint, read_json, write_json
from tunebook.runs.stage import Stage, adapter_key, command, finished_key
from tunebook.runs.stages import trained_models
from tunebook.runs.tracking import track


def evaluate(
    recipe: Recipe, only: Iterable[str] | None = None, force: bool = False
) -> dict[str, dict[str, Any]]:
    """Answer the held-out items with each stage's model; returns {stage: summary}.

    Items and batches are the same for every stage. Answers are kept in `eval/<stage>/predictions.jsonl` as
    they come, so an interrupted evaluation goes on. The base model is loaded once.

    Args:
        only: The stages to evaluate; by default `base` and those that are trained.

    Where no item has an answer that can be checked, the loss of the held-out answers is measured instead
    (`held_out.py`), and some items are answered to be read.

    Raises UserError for a stage that is not trained, naming the command that trains it.
    """
    force = switch("force", force)
    stages = {}
    missing = {}
    for name in only or trained_models(recipe):
        stages[name] = eval_stage(recipe, name)
        if force or not stages[name].done:
            missing[name] = stages[name]
    say_changed(recipe, stages)
    if list(stages) == ["base"] and not only:
        print(f"Nothing is trained in {recipe.run_dir}: the base model alone is evaluated.")
    if missing:
        _answer(recipe, missing, force)
    stages = {name: stage for name, stage in stages.items() if stage.done}
    if not stages:
        print("Nothing is held out (val and test are empty), so nothing is evaluated.")
        return {}
    results = {name: stage.result["summary"] for name, stage in stages.items()}
    folders = {name: stage.dir for name, stage in stages.items()}
    summary: dict[str, Any] = {"split": recipe.evaluate.split, "stages": results}
    if not recipe.data.sources:
        summary["split"] = "val"  # of the pairs
    if "loss" in next(iter(results.values())):
        summary["comparisons"] = []
        summary["losses"] = compare_losses(folders)
    else:
        summary["comparisons"] = comparisons(stages)
    if recipe.evaluate.retention:
        margin = recipe.evaluate.margin
        summary["retention"] = {"margin": margin, "comparisons": compare_retention(folders, margin)}
    if recipe.judge is not None:
        items, _ = _items(recipe)
        summary["judge"] = win_rates(recipe, recipe.judge, folders, items)
    warn_of_engines(stages)
    path = recipe.run_dir / "eval" / "summary.json"
    before = read_json(path).get("split", summary["split"])
    if before != summary["split"]:
        print(
            f"The results on {before} are replaced by those on {summary['split']}; another --run keeps both"
        )
    write_json(path, summary)
    if missing:
        track(recipe, "eval", results)
    return results


def eval_stage(recipe: Recipe, name: str) -> Stage:
    """The folder of one model's answers. Raises UserError when that model is not trained."""
    check = Check(recipe.check)
    # Changed, these give no other answers, and make no evaluation stale.
    unused = {"gate", "benchmarks", "margin", "retention"}
    if not recipe.evaluate.samples:
        unused |= {"samples", "temperature"}
    if all(
        source.format in ("geometry", "instructions") for source in recipe.data.sources
    ):  # they have no images
        unused.add("ablation")
    if recipe.evaluate.server is None:
        unused.add("server")
    exclude: Any = dict.fromkeys(unused, True)
    settings = {
        "evaluate": recipe.evaluate.model_dump(mode="json", exclude={"server": PACE, **exclude}),
        "model": recipe.model.model_dump(mode="json"),
        "verifier": verifier(),
        **check.settings,
    }
    if recipe.evaluate.retention:  # other items are another suite
        settings["retention"] = fingerprint(retention_items())
    if recipe.judge is not None:
        settings["judged"] = True  # all items are answered, also where nothing checks them
    inputs = {"data": data_stage(recipe).key, "adapter": adapter_key(recipe, name)}
    inputs |= check.inputs
    if not recipe.data.sources:  # the pairs that are kept for evaluation
        inputs["pairs"] = finished_key(recipe, "pairs")
    return Stage(recipe, f"eval/{name}", settings, inputs)


def comparisons(stages: dict[str, Stage]) -> list[dict[str, Any]]:
    """Each stage against the one before it and the last against the first, item by item."""
    marks: dict[str, dict[int, float | None]] = {}
    for name, stage in stages.items():
        predictions = read_records(stage.dir / "predictions.jsonl")
        marks[name] = {prediction["index"]: mark(prediction) for prediction in predictions}
    # Only items of which the checker says something for every stage's answer.
    unscored = set()
    for of_stage in marks.values():
        unscored |= {index for index, value in of_stage.items() if value is None}
    scores: dict[str, dict[Any, float]] = {}
    for name, of_stage in marks.items():
        scores[name] = {}
        for i, value in of_stage.items():
            if value is not None and i not in unscored:
                scores[name][i] = value
    if not all(scores.values()):
        return []
    return compared_steps(scores)


def examples(recipe: Recipe, count: int) -> list[Item]:
    """The first held-out items, to look at: rows of `evaluate.split`, or of DPO alone pairs of `val`."""
    return [item for item in held_out_answers(recipe, None) if not item.get("chat")][:count]


def answers(
    model: Any, tokenizer: Any, models: dict[str, str | None], rows: list[Item], max_new_tokens: int
) -> list[dict[str, str]]:
    """The same few rows answered by one loaded model with each of its adapters: {name: text} for each row.

    Args:
        model: The base with adapters on it, as training leaves it.
        models: The adapter of each name to show, `None` for the base: `{"base": None, "sft": "default"}`.
        rows: With a `prompt`, as `examples` gives them.
        max_new_tokens: The limit of an answer.
    """
    if not rows:
        return []

    def open_model(name: str) -> AbstractContextManager[Local]:
        return local(model, tokenizer, models[name])

    texts = []
    for row in answers_by_model(open_model, models, rows, max_new_tokens):
        texts.append({name: answer.text for name, answer in row.items()})
    return texts


def _items(recipe: Recipe) -> tuple[list[Item], bool]:
    """The held-out items, and whether answers to them can be checked."""
    if recipe.data.sources:
        items = held_out_items(recipe, recipe.evaluate.limit)
        if items:
            return items, True
    answered = [item for item in held_out_answers(recipe, recipe.evaluate.limit) if item["completion"]]
    return answered, False


def _answer(recipe: Recipe, missing: dict[str, Stage], force: bool) -> None:
    """Fill the folders of the stages whose answers are missing, if there is anything to answer."""
    backend.backend()  # Unsloth comes before whatever imports transformers
    if recipe.data.sources:
        train = prepare(recipe)["fingerprints"]["train"]
        for name in missing:
            _refuse_learnt(recipe, name, train)
    items, checkable = _items(recipe)
    if not items:
        return
    check = Check(recipe.check)
    # One base model carries the adapters of all stages.
    with _engine(recipe, list(missing), items) as engine:
        for name, stage in missing.items():
            with stage.open(resume=not force) as folder:
                exam = _exam(engine, name, stage, items, folder)
                if checkable:
                    exam = replace(exam, check=check)
                    stage.record = {"summary": _ask(exam), "verifier": verifier()}
                else:
                    stage.record = {"summary": _measure(engine, exam)}
                if recipe.evaluate.retention:
                    key = fingerprint([stage.settings["retention"], *_model_behind(stage)])
                    measure_retention(functools.partial(engine.open_local, name), folder, name, key)
                    stage.record["summary"]["retention"] = summarise_retention(folder)
                stage.record |= engine.record(name)


def _engine(recipe: Recipe, names: list[str], items: list[Item]) -> Engine:
    """What answers for these models."""
    config = recipe.evaluate
    answers = len(items) * len(names) * (1 + config.samples)
    kind = choose(recipe, config.server, "evaluate", answers)
    # A row with tools is no question that can be asked as text.
    prompts = [item["prompt"] for item in items if not item.get("chat")]
    compared = evenly(prompts, COMPARED)
    return Engine(recipe, "evaluate", kind, names, config.server, compared, answers, config.max_new_tokens)


def _exam(engine: Engine, name: str, stage: Stage, items: list[Item], folder: Path) -> Exam:
    source = functools.partial(engine.open, name)
    depends_on = (*_answers_depend_on(stage), *engine.depends_on)
    return Exam(engine.recipe, name, source, items, folder, depends_on)


def _ask(exam: Exam) -> dict[str, Any]:
    """The answers of a model to all items, counted; with samples and other images where the recipe asks."""
    config = exam.recipe.evaluate
    predictions = exam.answer()
    _refuse_unscored(exam.stage, predictions)
    summary = summarise(predictions)
    if config.samples:
        summary["sampled"] = exam.sample()
    if config.ablation and any(map(images_of, exam.items)):
        summary["images"] = exam.answer_other_images(predictions)
    if exam.stage != "base" and summary["repeating"] > 0.5:
        print(
            f"Warning: {summary['repeating']:.0%} of {exam.stage}'s answers repeat one piece of text "
            "to their end: it has collapsed"
        )
    return summary


def _refuse_unscored(name: str, predictions: list[Prediction]) -> None:
    """Say how many answers have no score. Raises UserError when none has one."""
    unscored = sum(prediction["correct"] is None for prediction in predictions)
    # What is cut off counts as wrong without being asked about.
    ended = sum(not prediction["truncated"] for prediction in predictions)
    if unscored and unscored == ended:
        raise UserError(f"the recipe's check says nothing of any answer of {name}: each score is None")
    if unscored:
        print(f"{name}: {unscored} of {len(predictions)} answers have no score and are left out")


def _answers_depend_on(stage: Stage) -> tuple[Any, ...]:
    """What a stage's answers depend on beside their prompts and sampling.

    More samples, or images asked otherwise, make no other greedy answers.
    """
    of_files = ("samples", "temperature", "ablation")
    asked = {key: value for key, value in stage.settings["evaluate"].items() if key not in of_files}
    elsewhere = ("evaluate", "retention")
    others = {key: value for key, value in stage.settings.items() if key not in elsewhere}
    return asked, others, stage.inputs, stage.input_hashes()


def _model_behind(stage: Stage) -> tuple[Any, ...]:
    """What the answers of a stage's model to any question depend on."""
    return stage.settings["model"], stage.inputs["adapter"], stage.input_hashes()


def _measure(engine: Engine, exam: Exam) -> dict[str, Any]:
    """Of a stage whose answers nothing can check: the loss of the held-out ones, and some of its own."""
    recipe, items = exam.recipe, exam.items
    with engine.open_local(exam.stage) as opened:
        measure_losses(opened, items, exam.folder, exam.stage, recipe.data.train_on or "all")
    # A row with tools is no question that can be asked as text.
    as_text = [item for item in items if not item.get("chat")]
    answered = as_text if recipe.judge else evenly(as_text, ANSWERED)
    if not answered:
        return {**summarise_losses(exam.folder), "answers": None, "slices": {}}
    predictions = replace(exam, items=answered).answer()
    return {**summarise_losses(exam.folder), "answers": summarise_answers(predictions), "slices": {}}


def _refuse_learnt(recipe: Recipe, name: str, train: str) -> None:
    """Raises UserError for a model that was trained on other rows than the train split holds now.

    Held-out rows may be among them.
    """
    learnt = read_json(recipe.run_dir / name / "stage.json").get("learnt", [])
    if set(learnt) - {train}:
        raise UserError(
            f"{name} was trained on other rows than the train split of the recipe's data holds now, "
            "so that a held-out row may be one that it has learnt: give `data` and `seed` as they were, "
            f"or train it again (`{command(recipe, name)}`), or choose another --run"
        )

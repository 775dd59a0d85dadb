"""`tunebook bench`: lm-evaluation-harness on base, SFT and DPO, with the same paired statistics as our own items.

uv sync --extra eval && uv run tunebook bench --set evaluate.benchmarks.limit=200
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from tunebook.evaluation.statistics import compared_steps, wilson
from tunebook.generation.local import local
from tunebook.models import backend, chat_template
from tunebook.models.adapters import load_stages
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import BenchmarksConfig, Recipe
from tunebook.runs.files import fingerprint, write_json
from tunebook.runs.stage import Stage, adapter_key
from tunebook.runs.stages import trained_models

METRICS = ("acc_norm", "acc", "exact_match")
"""The score of a task is the first of these that it has: accuracy normalised by length for ARC and HellaSwag."""


FILTER = "flexible-extract"
"""Of tasks with several ways to read an answer (GSM8K): the last number counts."""


def bench(recipe: Recipe, only: Iterable[str] | None = None, force: bool = False) -> dict[str, Any]:
    """Run the recipe's benchmark tasks with each stage's model, adapters not merged; returns what `bench/summary.json` holds.

    `only` defaults to `base` and the stages that are trained. Each task and stage has a folder of its own, with a record for each
    item, and is not run again when it is up to date.

    Raises UserError when lm-eval is not installed, for an unknown task, and for data that cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed: run `uv sync --extra eval`")
    wanted = list(only or trained_models(recipe))
    tasks = recipe.evaluate.benchmarks.tasks
    todo = {(name, task): bench_stage(recipe, name, task) for name in wanted for task in tasks}
    missing = {key: stage for key, stage in todo.items() if force or not stage.done}
    if missing:
        _run(recipe, missing)
    scores = {task: {name: _items(todo[name, task]) for name in wanted} for task in tasks}
    summary = {
        "tasks": {task: {name: todo[name, task].result["score"] for name in wanted} for task in tasks},
        "comparisons": [{"task": task, **c} for task in tasks for c in compared_steps(scores[task])],
    }
    write_json(recipe.run_dir / "bench" / "summary.json", summary)
    return summary


def bench_stage(recipe: Recipe, name: str, task: str) -> Stage:
    """The folder of one task and model. Raises UserError when that model is not trained."""
    config = recipe.evaluate.benchmarks
    settings = {
        **config.model_dump(mode="json", exclude={"tasks", "shots", "data", "include"}),
        "shots": config.shots.get(task),
        "files": {path.name: fingerprint(path.read_text(encoding="utf-8")) for path in _files(config, task)},
        "model": recipe.model.model_dump(mode="json"),
        "harness": version("lm-eval"),
    }
    return Stage(recipe, f"bench/{name}/{task}", settings, {"adapter": adapter_key(recipe, name)})


def _run(recipe: Recipe, missing: dict[tuple[str, str], Stage]) -> None:
    """The base model is loaded once; each missing task and stage is asked and written."""
    config = recipe.evaluate.benchmarks
    backend.backend()
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(
        logging.ERROR
    )  # it warns of what is meant to be: a loaded model, our settings
    manager = TaskManager(include_path=config.include)
    if unknown := [task for _, task in missing if task not in manager.all_tasks]:
        raise UserError(
            f"no task {unknown[0]!r} in lm-evaluation-harness{f' or {config.include}' if config.include else ''}: see `lm_eval ls tasks`"
        )
    if several := [
        task for _, task in missing if task not in manager.all_subtasks
    ]:  # whose items have no record under this name
        some = ", ".join(_tasks_in(manager, several[0])[:3]) or "one of `lm_eval ls subtasks`"
        raise UserError(f"{several[0]!r} is a group of tasks: name those you want, such as {some}")
    model, tokenizer = load_stages(recipe, dict.fromkeys(name for name, _ in missing))
    text = chat_template.text_tokenizer(tokenizer)  # the harness takes no processor
    text.chat_template = tokenizer.chat_template  # the recipe's, which a processor keeps to itself
    for (name, task), stage in missing.items():
        with (
            local(model, tokenizer, None if name == "base" else name) as source,
            stage.open(resume=False) as folder,
        ):
            print(f"{name}: {task}", flush=True)
            # Rounded to bfloat16, log-probabilities tie and flip.
            lm = HFLM(
                pretrained=source.model,
                tokenizer=text,
                batch_size=config.batch_size,
                softmax_dtype=torch.float32,
            )
            with _data_errors(task), contextlib.chdir(config.include or "."):
                found = simple_evaluate(
                    model=lm,
                    tasks=[_task(config, task)],
                    task_manager=manager,
                    num_fewshot=config.shots.get(task),
                    limit=config.limit,
                    bootstrap_iters=0,
                    apply_chat_template=config.chat_template,
                    gen_kwargs={"max_gen_toks": config.max_new_tokens},
                )
            stage.record = {"score": _write(found, task, folder, config.shots.get(task))}


def _tasks_in(manager: Any, given: Any) -> list[str]:
    """The tasks of a group or a tag that have a name of their own; of a group's parts some are written out in it."""
    if isinstance(given, str):
        if given in manager.all_subtasks:
            return [given]
        entry = manager.task_index.get(given)
        if entry is None:
            return []
        given = {"task": sorted(entry.tags)} if given in manager.all_tags else entry.cfg
    parts = given.get("task", [])  # a part may be without a name
    parts = parts if isinstance(parts, list) else [parts]
    return [task for part in parts for task in _tasks_in(manager, part)]


@contextlib.contextmanager
def _data_errors(task: str) -> Any:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, jinja2.TemplateError) as error:
        raise UserError(
            f"{task} cannot be run: {first_line(error)} (without a network, give its items with evaluate.benchmarks.data)"
        ) from None


def _task(config: BenchmarksConfig, task: str) -> Any:
    """The task's name; with items of the user's, the stock task on them (in a group: only there the harness merges the two)."""
    files = {path.name: str(path) for path in _files(config, task)}
    if f"{task}.jsonl" not in files:
        return task
    items, shots = files[f"{task}.jsonl"], files.get(f"{task}.train.jsonl")
    splits = {"test": items, "validation": items} | ({"train": shots} if shots else {})
    changed = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": splits}}
    return {
        "group": f"{task}_local",
        "task": [
            {"task": task, **changed, **({} if shots else {"training_split": None, "fewshot_split": None})}
        ],
    }


def _files(config: BenchmarksConfig, task: str) -> list[Path]:
    """What of the user's files a task depends on."""
    given = [Path(config.data) / f"{task}{kind}.jsonl" for kind in ("", ".train")] if config.data else []
    included = (
        sorted(p for p in Path(config.include).rglob("*") if p.suffix in (".yaml", ".jsonl", ".py"))
        if config.include
        else []
    )
    return [path.resolve() for path in (*given, *included) if path.is_file()]


def _write(found: Any, task: str, folder: Path, shots: int | None) -> dict[str, Any]:
    """A record for each item (`items.jsonl`), and the task's score."""
    samples = found["samples"][task]
    filters = {s["filter"] for s in samples}
    chosen = FILTER if FILTER in filters else sorted(filters)[0]
    metric = next((m for m in METRICS if m in samples[0]), samples[0]["metrics"][0])
    kept = sorted((s for s in samples if s["filter"] == chosen), key=lambda s: s["doc_id"])
    scores = [float(s[metric]) for s in kept]
    with (folder / "items.jsonl").open("w", encoding="utf-8") as out:
        for s, score in zip(kept, scores, strict=True):
            record = {
                "doc_id": s["doc_id"],
                "score": score,
                "target": str(s["target"]),
                "answer": s["filtered_resps"],
            }
            out.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
    given = found["n-shot"].get(task) if shots is None else shots
    return {
        "n": len(scores),
        "score": sum(scores) / len(scores),
        "interval": wilson(sum(scores), len(scores)),
        "metric": metric,
        "shots": given,
    }


def _items(stage: Stage) -> dict[int, float]:
    lines = (stage.dir / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return {item["doc_id"]: item["score"] for item in map(json.loads, lines)}

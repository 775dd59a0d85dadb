"""`tunebook bench`: lm-evaluation-harness on every stage's model, with paired statistics.

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

from tunebook.data.retention_items import retention_items
from tunebook.evaluation.statistics import column, compared_steps, wilson
from tunebook.generation.engines import (
    COMPARED,
    CONCURRENCY,
    FEW,
    TRANSFORMERS,
    Engine,
    choose,
    warn_of_engines,
)
from tunebook.generation.local import Local
from tunebook.models import backend
from tunebook.models.chat_template import text_tokenizer
from tunebook.models.tokenizer import load_tokenizer
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import BenchmarksConfig, Recipe, ServerConfig
from tunebook.runs.files import fingerprint, read_jsonl, write_json
from tunebook.runs.stage import Stage, adapter_key
from tunebook.runs.stages import trained_models

# The score of a task is the first of these that it has. `acc_norm` is normalised by length (ARC, HellaSwag).
METRICS = ("acc_norm", "acc", "exact_match")

# Of tasks with several ways to read an answer (GSM8K): the last number counts.
FILTER = "flexible-extract"

PROMPT_TOKENS = 4096
"""The longest prompt that vLLM is to take: 25 examples of ARC are some 2,500 tokens."""


def bench(recipe: Recipe, only: Iterable[str] | None = None, force: bool = False) -> dict[str, Any]:
    """Run the recipe's benchmark tasks with each stage's model, adapters not merged.

    Each task and stage has a folder with a record for each item, and is not run again when it is up to date.

    Args:
        only: The stages; by default `base` and those that are trained.

    Returns:
        What `bench/summary.json` holds: `tasks` as {task: {stage: score}}, and `comparisons`.

    Raises UserError when lm-eval is not installed, for an unknown task, and for data that cannot be had.
    """
    # Found without importing it: it takes seconds.
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed: run `uv sync --extra eval`")
    names = list(only or trained_models(recipe))
    tasks = recipe.evaluate.benchmarks.tasks
    stages = {}
    missing = {}
    for name in names:
        for task in tasks:
            stage = bench_stage(recipe, name, task)
            stages[name, task] = stage
            if force or not stage.done:
                missing[name, task] = stage
    if missing:
        _run(recipe, missing)
    summary: dict[str, Any] = {"tasks": {task: {} for task in tasks}, "comparisons": []}
    for task in tasks:
        item_scores = {}
        for name in names:
            summary["tasks"][task][name] = stages[name, task].result["score"]
            records = read_jsonl(stages[name, task].dir / "items.jsonl")
            item_scores[name] = {record["doc_id"]: record["score"] for record in records}
        warn_of_engines({name: stages[name, task] for name in names})
        for compared in compared_steps(item_scores):
            summary["comparisons"].append({"task": task, **compared})
    write_json(recipe.run_dir / "bench" / "summary.json", summary)
    return summary


def bench_stage(recipe: Recipe, name: str, task: str) -> Stage:
    """The folder of one task and model. Raises UserError when that model is not trained."""
    config = recipe.evaluate.benchmarks
    # A changed file of the user's makes its task stale.
    files = {path.name: fingerprint(path.read_text(encoding="utf-8")) for path in _files(config, task)}
    settings = {
        **config.model_dump(mode="json", exclude={"tasks", "shots", "data", "include"}),
        "shots": config.shots.get(task),
        "files": files,
        "model": recipe.model.model_dump(mode="json"),
        "harness": version("lm-eval"),
    }
    return Stage(recipe, f"bench/{name}/{task}", settings, {"adapter": adapter_key(recipe, name)})


def _run(recipe: Recipe, missing: dict[tuple[str, str], Stage]) -> None:
    """Run each missing task and stage; the base model is loaded once."""
    config = recipe.evaluate.benchmarks
    backend.backend()
    from aiohttp import ClientError
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    # It warns of what is meant to be: a loaded model, our settings.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=_included(config))
    for _, task in missing:
        _refuse_unknown(manager, task, config.include)
    with _engine(recipe, list(dict.fromkeys(name for name, _ in missing))) as engine:
        for (name, task), stage in missing.items():
            shots = config.shots.get(task)
            with engine.open(name) as source, stage.open(resume=False) as folder:
                print(f"{name}: {task}", flush=True)
                try:
                    # A task of the user's may name its items by their path from its own folder.
                    with contextlib.chdir(_included(config) or "."):
                        result = simple_evaluate(
                            model=_asked_model(recipe, source),
                            tasks=[_task(config, task)],
                            task_manager=manager,
                            num_fewshot=shots,
                            limit=config.limit,
                            bootstrap_iters=0,  # the intervals are ours
                            apply_chat_template=config.chat_template,
                            gen_kwargs={"max_gen_toks": config.max_new_tokens, **_ends(source)},
                        )
                except (OSError, ValueError, LookupError, TypeError, jinja2.TemplateError) as error:
                    raise UserError(
                        f"{task} cannot be run: {first_line(error)} "
                        "(without a network, give its items with evaluate.benchmarks.data)"
                    ) from None
                except ClientError as error:
                    raise UserError(f"{task}: vLLM gives no answer: {first_line(error)}") from None
                score = _write(result["samples"][task], folder / "items.jsonl")
                score["shots"] = result["n-shot"].get(task) if shots is None else shots
                stage.record = {"score": score, **engine.record(name)}


def _engine(recipe: Recipe, names: list[str]) -> Engine:
    """The model in this process, or vLLM; a user's server gives no log-probabilities of a prompt."""
    config = recipe.evaluate.benchmarks
    if recipe.generate.engine == "server":
        kind = TRANSFORMERS
    else:
        # How many items a task has is known only when it is read: without a limit they are many.
        kind = choose(recipe, None, "bench", (config.limit or FEW + 1) * len(config.tasks) * len(names))
    compared = [item["prompt"] for item in retention_items()[:COMPARED]]
    engine = Engine(recipe, "bench", kind, names, None, compared, max_new_tokens=config.max_new_tokens)
    engine.prompt_tokens = PROMPT_TOKENS
    return engine


def _asked_model(recipe: Recipe, source: Local | ServerConfig) -> Any:
    """What the harness asks: its own classes for a loaded model and for an OpenAI-compatible server."""
    if isinstance(source, Local):
        import torch
        from lm_eval.models.huggingface import HFLM

        # Rounded to bfloat16, log-probabilities tie and flip.
        return HFLM(
            pretrained=source.model,
            tokenizer=_harness_tokenizer(source.tokenizer),
            batch_size=recipe.evaluate.benchmarks.batch_size,
            softmax_dtype=torch.float32,
        )
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    tokenizer = _harness_tokenizer(load_tokenizer(recipe.model))
    longest = PROMPT_TOKENS + recipe.evaluate.benchmarks.max_new_tokens
    lm = LocalCompletionsAPI(
        base_url=f"{source.urls[0]}/completions",
        model=source.model,
        tokenizer_backend=None,  # it would look for one by the model's name
        num_concurrent=CONCURRENCY,
        max_length=min(longest, tokenizer.model_max_length),
        timeout=int(source.timeout),
        header={"Authorization": "Bearer none"},  # else it sends the key that is meant for OpenAI
    )
    lm.tokenizer = tokenizer
    lm.tokenizer_backend = "huggingface"
    lm.tokenized_requests = True
    return lm


def _harness_tokenizer(tokenizer: Any) -> Any:
    """The harness takes no processor, and a processor keeps the recipe's chat template to itself."""
    text = text_tokenizer(tokenizer)
    text.chat_template = tokenizer.chat_template
    return text


def _ends(source: Local | ServerConfig) -> dict[str, Any]:
    """What a server is told beside each question: the tokens that end a turn."""
    return dict(source.extra) if isinstance(source, ServerConfig) else {}


def _refuse_unknown(manager: Any, task: str, include: str | None) -> None:
    """Raises UserError for a task that the harness does not know, and for a group of tasks."""
    if task not in manager.all_tasks:
        known = f"lm-evaluation-harness or {include}" if include else "lm-evaluation-harness"
        raise UserError(f"no task {task!r} in {known}: see `lm_eval ls tasks`")
    if task not in manager.all_subtasks:  # a group, whose items have no record under this name
        some = ", ".join(_tasks_in(manager, task)[:3]) or "one of `lm_eval ls subtasks`"
        raise UserError(f"{task!r} is a group of tasks: name those you want, such as {some}")


def _tasks_in(manager: Any, group: Any) -> list[str]:
    """The tasks of a group or a tag that have a name of their own. Some are written out in their group."""
    if isinstance(group, str):
        if group in manager.all_subtasks:
            return [group]
        entry = manager.task_index.get(group)
        if entry is None:
            return []
        # A tag has names of tasks only; a group's parts may be tasks, groups or a whole task written out.
        group = {"task": sorted(entry.tags)} if group in manager.all_tags else entry.cfg
    parts = group.get("task", [])  # a part may be without a name
    names = []
    for part in parts if isinstance(parts, list) else [parts]:
        names += _tasks_in(manager, part)
    return names


def _task(config: BenchmarksConfig, task: str) -> Any:
    """The task's name; where the user has items for it, the stock task on them."""
    files = {path.name: str(path) for path in _files(config, task)}
    items = files.get(f"{task}.jsonl")
    if items is None:
        return task
    splits = {"test": items, "validation": items}
    local_task: dict[str, Any] = {"task": task, "dataset_path": "json", "dataset_name": None}
    if shots := files.get(f"{task}.train.jsonl"):
        splits["train"] = shots
    else:
        local_task |= {"training_split": None, "fewshot_split": None}
    local_task["dataset_kwargs"] = {"data_files": splits}
    # The harness merges this with the stock task only inside a group.
    return {"group": f"{task}_local", "task": [local_task]}


def _included(config: BenchmarksConfig) -> str | None:
    """The folder of the user's own tasks, where it lies on this machine."""
    return str(config.find_path(config.include)) if config.include else None


def _files(config: BenchmarksConfig, task: str) -> list[Path]:
    """What of the user's files a task depends on."""
    paths = []
    if config.data:  # items, and the examples for the prompt
        folder = config.find_path(config.data)
        paths += [folder / f"{task}.jsonl", folder / f"{task}.train.jsonl"]
    if config.include:
        included = config.find_path(config.include).rglob("*")
        paths += sorted(path for path in included if path.suffix in (".yaml", ".jsonl", ".py"))
    return [path.resolve() for path in paths if path.is_file()]


def _write(samples: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    """Write a record for each item; returns the task's score."""
    # Each item comes once for each way to read its answer.
    filters = set(column(samples, "filter"))
    chosen = FILTER if FILTER in filters else min(filters)
    first = samples[0]
    metric = next((name for name in METRICS if name in first), first["metrics"][0])
    records = []
    for sample in samples:
        if sample["filter"] == chosen:
            records.append(
                {
                    "doc_id": sample["doc_id"],
                    "score": float(sample[metric]),
                    "target": str(sample["target"]),
                    "answer": sample["filtered_resps"],
                }
            )
    records.sort(key=lambda record: int(record["doc_id"]))
    with path.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
    total = sum(column(records, "score"))
    return {
        "n": len(records),
        "score": total / len(records),
        "interval": wilson(total, len(records)),
        "metric": metric,
    }

"""SFT and DPO on one GPU: this project's stages (Unsloth) against stock TRL with PEFT.

    uv run python benchmarks/gpu.py --out benchmarks/records/gpu.json
    uv run python benchmarks/gpu.py --base /models/Qwen3-4B-Base --steps 40
    uv run python benchmarks/gpu.py --dry-run       # on any machine: builds all sides' configs

Tokens per second and peak GPU memory. Not run on a GPU yet. The recipe's model, LoRA and trainer settings on
both sides, the same rows (`rows.py`) in the same batches, each turn in a process of its own: Unsloth changes
TRL wherever it is imported. The first steps, in which kernels are compiled, do not count. Stock TRL trains
DPO from a fresh adapter, whose reference is the model without it: as much work a step.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import common
import rows as chat
import typer

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT, find_file
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe

STEPS = 24
"""Of a turn."""

WARM = 4
"""Steps of a turn that do not count."""

SIDES = ("tunebook", "FastLanguageModel", "trl")
"""This project as the recipe has it, with Unsloth's other loader, and stock TRL."""
SECTIONS = ("sft", "dpo")
ROWS = 6_000
MEASURED = ("tokens_per_s", "step_s", "peak_gb", "reserved_gb")
PACKAGES = ("torch", "transformers", "trl", "peft", "unsloth", "bitsandbytes")
OURS_ALONE = {"early_stopping_patience", "early_stopping_threshold"}


def write_rows(folder: Path) -> None:
    """Rows for SFT and pairs for DPO."""
    chat.write(folder / "rows.jsonl", ROWS)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as out:
        for row in chat.rows(ROWS, seed=1):
            chosen = row["completion"]
            if not chosen.startswith("###"):
                continue  # one of the broken ones
            pair = {
                "prompt": row["prompt"],
                "chosen": chosen,
                "rejected": chosen.replace("boxed{", "boxed{1"),
            }
            out.write(json.dumps(pair) + "\n")


def recipe_of(name: str, base: str | None, folder: Path, steps: int) -> Recipe:
    """The recipe on the written rows, so many steps long, without evaluation and checkpoints."""
    overrides: dict[str, Any] = {
        "data.sources": [{"format": "chat", "path": str(folder / "rows.jsonl"), "split": "train"}],
        "data.for_pairs": 0.0,
        "pairs.methods": ["dataset"],
        "pairs.dataset": str(folder / "pairs.jsonl"),
        "pairs.min_margin": None,
        "pairs.rows": None,
        "pairs.columns": {},
        "pairs.val": 0.0,
    }
    if base:
        overrides["model.base"] = base
    for section in SECTIONS:
        overrides[f"{section}.max_steps"] = steps
        overrides[f"{section}.eval_strategy"] = "no"
        overrides[f"{section}.save_strategy"] = "no"
        overrides[f"{section}.load_best_model_at_end"] = False
    return load_recipe(name, run="gpu", overrides=overrides)


def clock() -> Any:
    """A callback that keeps the time at the end of each step."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    return Clock()


def ours(recipe: Recipe, section: str, dry: bool) -> list[float]:
    """Train the stage as `tunebook sft` or `tunebook dpo` does; the times of its steps."""
    from tunebook.models import backend
    from tunebook.training import arguments

    backend.backend()
    import trl

    if dry:
        config = getattr(trl, f"{section.upper()}Config")
        with tempfile.TemporaryDirectory() as folder:
            arguments.trainer_arguments(config, recipe, section, Path(folder))
        return []
    from tunebook.pairs.pairs import pairs
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    if section == "dpo":
        sft(recipe)
        pairs(recipe)
    ticks = clock()
    callbacks = arguments.trainer_callbacks
    arguments.trainer_callbacks = lambda *args: [*callbacks(*args), ticks]
    if section == "sft":
        sft(recipe)
    else:
        dpo(recipe)
    return list(ticks.times)


def stock(recipe: Recipe, section: str, dry: bool) -> list[float]:
    """The same with TRL's trainer and PEFT as their documentation has it; the times of its steps."""
    import peft
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from tunebook.data.prepare import prepare
    from tunebook.data.storage import load
    from tunebook.models import builtin, chat_template

    settings = {key: value for key, value in getattr(recipe, section).items() if key not in OURS_ALONE}
    settings |= {
        "max_length": recipe.model.max_seq_length,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "report_to": "none",
        "bf16": True,
    }
    if dry:
        settings["use_cpu"] = True
    fields = peft.LoraConfig.__dataclass_fields__
    lora = {key: value for key, value in recipe.lora.items() if key in fields}
    with tempfile.TemporaryDirectory() as folder:
        args = getattr(trl, f"{section.upper()}Config")(output_dir=folder, **settings)
        adapter = peft.LoraConfig(task_type="CAUSAL_LM", **lora)
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        if dry:
            return []
        prepare(recipe)
        rows = load(recipe, "train").select_columns(["prompt", "completion"])
        if section == "dpo":
            rows = _pairs(recipe, rows)
        base = builtin.resolve(recipe.model.base)
        tokenizer = AutoTokenizer.from_pretrained(base)
        chat_template.fit_tokenizer(tokenizer, recipe.model)
        model = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=torch.bfloat16,
            device_map={"": 0},
            quantization_config=nf4 if recipe.model.load_in_4bit else None,
        )
        ticks = clock()
        trainer = getattr(trl, f"{section.upper()}Trainer")(
            model=model,
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[ticks],
        )
        trainer.train()
        return list(ticks.times)


def _pairs(recipe: Recipe, rows: Any) -> Any:
    """The pairs of the file as messages, as our stage has them."""
    import datasets

    system = [message for message in rows[0]["prompt"] if message["role"] == "system"]
    pairs = []
    for line in find_file(str(recipe.pairs.dataset)).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        pairs.append(
            {
                "prompt": [*system, {"role": "user", "content": row["prompt"]}],
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [{"role": "assistant", "content": row["rejected"]}],
            }
        )
    return datasets.Dataset.from_list(pairs)


def mean_tokens(recipe: Recipe, section: str) -> float:
    """Of a row (SFT) or of the two answers of a pair with their prompts (DPO)."""
    from tunebook.data.storage import load
    from tunebook.models.tokenizer import load_tokenizer

    rows = load(recipe, "train").select(range(200))
    if section == "sft":
        return statistics.mean(rows["tokens"])
    tokenizer = load_tokenizer(recipe.model)
    lengths = []
    for pair in _pairs(recipe, rows).select(range(200)):
        for side in ("chosen", "rejected"):
            messages = pair["prompt"] + pair[side]
            encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
            lengths.append(len(encoded["input_ids"]))
    return 2 * statistics.mean(lengths)


def turn(recipe: Recipe, side: str, section: str, dry: bool) -> dict[str, float]:
    """One side trains once, in this process: tokens per second (the median step's), peak GPU memory in GB."""
    if side == "FastLanguageModel":
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"loader": side})})
    train = stock if side == "trl" else ours
    times = train(recipe, section, dry)
    if dry:
        return {}
    import torch

    step = statistics.median(after - before for before, after in itertools.pairwise(times[WARM:]))
    settings = getattr(recipe, section)
    rows = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    return {
        "tokens_per_s": rows * mean_tokens(recipe, section) / step,
        "step_s": step,
        "reserved_gb": torch.cuda.max_memory_reserved() / 2**30,
        "peak_gb": torch.cuda.max_memory_allocated() / 2**30,
    }


def in_process(command: list[str], side: str, dry: bool) -> Callable[[], dict[str, Any]]:
    """A side for `common.by_turns`: this file with `--side`, in a process and a run folder of its own."""
    env = {"PYTHONPATH": str(ROOT / "src")}
    if dry:
        env["UNSLOTH_FORCE_CPU"] = "1"

    def one_turn() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as runs:
            done = common.measured([*command, "--side", side], TUNEBOOK_RUNS=runs, **env)
        return dict(json.loads(done["out"].splitlines()[-1]))

    return one_turn


def main(
    recipe: str = "qwen3-4b-instruct",
    base: Annotated[str | None, typer.Option(help="Another base model: a hub id or a folder.")] = None,
    steps: int = STEPS,
    turns: int = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build the configs of both sides, train nothing.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
    side: Annotated[
        str | None, typer.Option(help="Used by the benchmark itself: one side in this process.")
    ] = None,
    section: Annotated[str, typer.Option(help="... and which stage.")] = "sft",
    folder: Annotated[Path | None, typer.Option(help="... and where the rows are.")] = None,
) -> None:
    if steps < WARM + 4:
        raise typer.BadParameter(f"--steps: at least {WARM + 4}, the first {WARM} do not count")
    if side and folder:
        print(json.dumps(turn(recipe_of(recipe, base, folder, steps), side, section, dry_run)))
        return

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name))
        parsed = recipe_of(recipe, base, Path(name), steps)
        for stage in SECTIONS:
            command = [sys.executable, __file__, "--recipe", recipe, "--steps", str(steps)]
            command += ["--section", stage, "--folder", name]
            if base:
                command += ["--base", base]
            if dry_run:
                command.append("--dry-run")
            sides = {side_name: in_process(command, side_name, dry_run) for side_name in SIDES}
            done = common.by_turns(sides, 1 if dry_run else turns)
            if dry_run:
                print(f"{stage}: both configs are accepted")
                continue
            results[stage] = {}
            for side_name in SIDES:
                results[stage][side_name] = {
                    key: common.spread([one[key] for one in done[side_name]]) for key in MEASURED
                }
            rates = {}
            for side_name in SIDES:
                rates[side_name] = [one["tokens_per_s"] for one in done[side_name]]
            results[stage]["ratio"] = {}
            for side_name in SIDES[:-1]:
                times = common.ratio(rates[side_name], rates["trl"])
                results[stage]["ratio"][side_name] = times
                print(
                    f"{stage}, {side_name}: {times['median']:.2f} times TRL's tokens per second", flush=True
                )
    if dry_run:
        return
    settings = {
        "recipe": recipe,
        "base": parsed.model.base,
        "steps": steps,
        "warm": WARM,
        "turns": turns,
        "model": parsed.model.model_dump(),
    }
    common.write(out, {"stages": results, "settings": settings}, PACKAGES)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"gpu: {error}")

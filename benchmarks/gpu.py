"""SFT and DPO on one GPU: this project's stages (Unsloth) against stock TRL with PEFT, tokens per second and peak GPU memory.

    uv run python benchmarks/gpu.py --out benchmarks/records/gpu.json
    uv run python benchmarks/gpu.py --base /models/Qwen3-4B-Base --steps 40
    uv run python benchmarks/gpu.py --dry-run          # on any machine: builds both sides' configs, trains nothing

Not run on a GPU yet. The recipe's model, LoRA and trainer settings on both sides, the same rows (`rows.py`) in the same batches,
each turn in a process of its own: Unsloth changes TRL wherever it is imported. The first steps, in which kernels are compiled, do
not count. Stock TRL trains DPO from a fresh adapter, whose reference is the model without it: as much work a step.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import common
import rows as chat
import typer

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT, find_file
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe

Side = Literal["tunebook", "trl"]
Section = Literal["sft", "dpo"]
STEPS, WARM = 24, 4
"""Steps of a turn, and how many of them do not count."""
OURS_ALONE = {"early_stopping_patience", "early_stopping_threshold"}


def recipe_of(name: str, base: str | None, folder: Path, steps: int, rows: int) -> Recipe:
    """The recipe on generated rows, so many steps long, without evaluation and checkpoints."""
    data, pairs = folder / "rows.jsonl", folder / "pairs.jsonl"
    if not data.exists():
        chat.write(data, rows)
        with pairs.open("w", encoding="utf-8") as out:
            for row in (
                row for row in chat.rows(rows, seed=1) if row["completion"].startswith("###")
            ):  # not the broken ones
                wrong = row["completion"].replace("boxed{", "boxed{1")
                out.write(
                    json.dumps({"prompt": row["prompt"], "chosen": row["completion"], "rejected": wrong})
                    + "\n"
                )
    source = {"format": "chat", "path": str(data), "split": "train"}
    given: dict[str, Any] = {
        "data.sources": [source],
        "data.for_pairs": 0.0,
        "pairs.methods": ["dataset"],
        "pairs.dataset": str(pairs),
    }
    given |= {"pairs.min_margin": None, "pairs.rows": None, "pairs.columns": {}, "pairs.val": 0.0} | (
        {"model.base": base} if base else {}
    )
    short = {
        "max_steps": steps,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
    }
    given |= {f"{section}.{key}": value for section in ("sft", "dpo") for key, value in short.items()}
    return load_recipe(name, run="gpu", overrides=given)


def clock() -> Any:
    """A callback that keeps the time at the end of each step."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        times: list[float] = []  # noqa: RUF012

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    return Clock()


def ours(recipe: Recipe, section: Section, dry: bool) -> list[float]:
    """Train the stage as `tunebook sft` or `tunebook dpo` does; the times of its steps."""
    from tunebook.models import backend
    from tunebook.training import arguments

    backend.backend()
    import trl

    if dry:
        with tempfile.TemporaryDirectory() as folder:
            arguments.arguments(getattr(trl, f"{section.upper()}Config"), recipe, section, Path(folder))
        return []
    from tunebook.pairs.pairs import pairs
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    ticks, arguments = clock(), arguments.arguments

    def with_clock(*args: Any) -> tuple[Any, list[Any]]:
        config, callbacks = arguments(*args)
        return config, [*callbacks, ticks]

    if section == "dpo":
        sft(recipe)
        pairs(recipe)
    arguments.arguments = with_clock
    (sft if section == "sft" else dpo)(recipe)
    return list(ticks.times)


def stock(recipe: Recipe, section: Section, dry: bool) -> list[float]:
    """The same with TRL's trainer and PEFT as their documentation has it; the times of its steps."""
    import peft
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from tunebook.data.prepare import prepare
    from tunebook.data.storage import load
    from tunebook.models import builtin, chat_template

    given = {k: v for k, v in getattr(recipe, section).items() if k not in OURS_ALONE}
    given |= {
        "max_length": recipe.model.max_seq_length,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "report_to": "none",
        "bf16": True,
    }
    lora = {k: v for k, v in recipe.lora.items() if k in peft.LoraConfig.__dataclass_fields__}
    with tempfile.TemporaryDirectory() as folder:
        args = getattr(trl, f"{section.upper()}Config")(
            output_dir=folder, **given, **({"use_cpu": True} if dry else {})
        )
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
            **({"quantization_config": nf4} if recipe.model.load_in_4bit else {}),
        )
        trainer = getattr(trl, f"{section.upper()}Trainer")(
            model=model,
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[ticks := clock()],
        )
        trainer.train()
        return list(ticks.times)


def _pairs(recipe: Recipe, rows: Any) -> Any:
    """The pairs of the file as messages, as our stage has them."""
    import datasets

    found = [
        json.loads(line)
        for line in find_file(str(recipe.pairs.dataset)).read_text(encoding="utf-8").splitlines()
    ]
    system = [m for m in rows[0]["prompt"] if m["role"] == "system"]
    sides = [
        {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        for row in found
    ]
    asked = [{"prompt": [*system, {"role": "user", "content": row["prompt"]}]} for row in found]
    return datasets.Dataset.from_list([a | b for a, b in zip(asked, sides, strict=True)])


def mean_tokens(recipe: Recipe, section: Section) -> float:
    """Of a row (SFT) or of the two answers of a pair with their prompts (DPO)."""
    from tunebook.data.storage import load
    from tunebook.models.tokenizer import load_tokenizer

    tok = load_tokenizer(recipe.model)
    rows = load(recipe, "train").select(range(200))
    if section == "sft":
        return statistics.mean(rows["tokens"])
    pairs = _pairs(recipe, rows).select(range(200))
    sides = [p["prompt"] + p[side] for p in pairs for side in ("chosen", "rejected")]
    return 2 * statistics.mean(
        len(tok.apply_chat_template(m, tokenize=True, return_dict=True)["input_ids"]) for m in sides
    )


def turn(recipe: Recipe, side: Side, section: Section, dry: bool) -> dict[str, float]:
    """One side trains once, in this process: tokens per second (the median step's), peak GPU memory in GB."""
    times = (ours if side == "tunebook" else stock)(recipe, section, dry)
    if dry:
        return {}
    import torch

    step = statistics.median(b - a for a, b in zip(times[WARM:], times[WARM + 1 :], strict=False))
    given = getattr(recipe, section)
    rows = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    found = {
        "tokens_per_s": rows * mean_tokens(recipe, section) / step,
        "step_s": step,
        "reserved_gb": torch.cuda.max_memory_reserved() / 2**30,
    }
    return found | {"peak_gb": torch.cuda.max_memory_allocated() / 2**30}


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
        parsed = recipe_of(recipe, base, folder, steps, 0)
        print(
            json.dumps(
                turn(
                    parsed,
                    "tunebook" if side == "tunebook" else "trl",
                    "dpo" if section == "dpo" else "sft",
                    dry_run,
                )
            )
        )
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        parsed = recipe_of(recipe, base, Path(name), steps, 6_000)
        for stage in ("sft", "dpo"):
            command = [
                sys.executable,
                __file__,
                "--recipe",
                recipe,
                "--steps",
                str(steps),
                "--section",
                stage,
                "--folder",
                name,
            ]
            command += (["--base", base] if base else []) + (["--dry-run"] if dry_run else [])
            env = {"PYTHONPATH": f"{ROOT / 'src'}"} | ({"UNSLOTH_FORCE_CPU": "1"} if dry_run else {})

            def one(who: str, command: list[str] = command, env: dict[str, str] = env) -> dict[str, Any]:
                with tempfile.TemporaryDirectory() as runs:
                    done = common.measured([*command, "--side", who], TUNEBOOK_RUNS=runs, **env)
                return json.loads(done["out"].splitlines()[-1])

            done = common.by_turns(
                {who: (lambda who=who: one(who)) for who in ("tunebook", "trl")}, 1 if dry_run else turns
            )
            if dry_run:
                print(f"{stage}: both configs are accepted")
                continue
            keys = ("tokens_per_s", "step_s", "peak_gb", "reserved_gb")
            found[stage] = {
                who: {key: common.spread([t[key] for t in taken]) for key in keys}
                for who, taken in done.items()
            }
            found[stage]["ratio"] = common.ratio(
                *([t["tokens_per_s"] for t in done[who]] for who in ("tunebook", "trl"))
            )
            print(f"{stage}: {found[stage]['ratio']['median']:.2f} times the tokens per second", flush=True)
    if not dry_run:
        settings = {
            "recipe": recipe,
            "base": parsed.model.base,
            "steps": steps,
            "warm": WARM,
            "turns": turns,
            "model": parsed.model.model_dump(),
        }
        common.write(
            out,
            {"stages": found, "settings": settings},
            ("torch", "transformers", "trl", "peft", "unsloth", "bitsandbytes"),
        )


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"gpu: {error}")

"""`tunebook dpo`: direct preference optimisation (Rafailov et al. 2023) of the SFT adapter on checked pairs.

    uv run tunebook dpo --recipe smollm2-math --set dpo.learning_rate=2e-4

Twin of `sft.py`: load the recipe, the rows and the model, audit, train, save, record. The reference is the SFT model:
TRL keeps a frozen copy of the adapter it starts from under the name `ref`.
"""

from __future__ import annotations

from typing import Any

from tunebook.data.prepare import data_stage
from tunebook.data.storage import read_rows
from tunebook.models import adapters, backend, loading
from tunebook.models.cpu.shared_prefixes import shared
from tunebook.pairs.pairs import existing_pairs, pairs_stage
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json
from tunebook.runs.stage import Stage, finished_key
from tunebook.runs.stages import policy_name, round_name
from tunebook.training import arguments, audits, memory
from tunebook.training.audits import audit_step_0, image_margins
from tunebook.training.callbacks import watch_preferences
from tunebook.training.trainer import train

COLUMNS = ["prompt", "chosen", "rejected", "images"]


def dpo(recipe: Recipe, number: int = 1, force: bool = False, resume: bool = True) -> dict[str, Any]:
    """Train the adapter in `dpo/adapter` of the run folder (`dpo-2/`, ... in a later round), unless it lies there already;
    returns the stage's record.

    A later round starts from the round before, which is then its reference.

    Raises UserError when pairs or the SFT adapter are missing, or when policy and reference differ before the first step.
    """
    print(recipe.describe())
    existing_pairs(recipe, number)
    stage = dpo_stage(recipe, number)
    if stage.skip(force):
        return stage.result
    pairs, start = pairs_stage(recipe, number), policy_name(number)
    if not pairs.done:
        raise UserError(
            f"the pairs in {pairs.dir} are of other settings or another {start} model: run `{recipe.command('pairs')}` again"
        )
    backend.backend()
    rows = {
        split: arguments.only(COLUMNS, read_rows(recipe, pairs.dir / f"{split}.parquet"))
        for split in ("train", "val")
    }
    with stage.open(resume and not force) as folder:
        from trl import DPOConfig, DPOTrainer

        args, callbacks = arguments.arguments(DPOConfig, recipe, "dpo", folder)
        if (
            args.use_weighting and "sft" in args.loss_type
        ):  # TRL and Unsloth multiply it in place, and it is one number for all rows
            raise UserError(
                "dpo.use_weighting cannot weight the sft loss: set dpo.loss_type=[sigmoid] and dpo.loss_weights=[1.0]"
            )
        val = arguments.eval_rows(args, rows["val"], "dpo", "pairs.val")
        needed = memory.preflight(recipe, args, rows["train"], "dpo")
        model, tokenizer = loading.load(recipe)
        model = adapters.restore_lora(adapters.add_lora(model, recipe), recipe.run_dir / start / "adapter")
        health = watch_preferences(args.beta)
        trainer = DPOTrainer(
            model=model,
            ref_model=None,
            args=args,
            processing_class=tokenizer,
            train_dataset=rows["train"],
            eval_dataset=val,
            callbacks=[*callbacks, health],
        )
        if recipe.pairs.compare == "step":
            first_steps(trainer, tokenizer)
        if audits.sees_images(trainer):
            audits.audit_images(trainer, tokenizer)
        step_0 = audit_step_0(trainer)
        metrics = train(trainer, folder)
        counts = {"train": len(trainer.train_dataset)}
        stage.record = {
            "audit": step_0,
            "metrics": metrics,
            "warnings": health.warnings,
            "rows": counts,
            "preflight": needed,
        }
        stage.record["learnt"] = _learnt(recipe, start)
        if audits.sees_images(trainer):
            stage.record["image_margins"] = image_margins(
                trainer, rows["val"] if len(rows["val"]) else rows["train"]
            )
        adapters.save_adapter(model, tokenizer, folder / "adapter")
    return stage.result


def _learnt(recipe: Recipe, start: str) -> list[str]:
    """Fingerprints of the train splits behind the model: those of the adapter that it starts from, and the one that its pairs come from."""
    before = read_json(recipe.run_dir / start / "stage.json").get("learnt", [])
    now = data_stage(recipe).result.get("fingerprints", {}).get("train")
    return sorted({*before, *([now] if now else [])})


def dpo_stage(recipe: Recipe, number: int = 1) -> Stage:
    """The stage that `dpo` fills in a round. Raises UserError when the pairs or the adapter to start from are missing."""
    settings = {
        "model": recipe.model.model_dump(mode="json"),
        "lora": recipe.lora,
        "dpo": recipe.dpo,
        "seed": recipe.seed,
        "compare": recipe.pairs.compare,
    }
    inputs = {name: finished_key(recipe, name) for name in (round_name("pairs", number), policy_name(number))}
    return Stage(recipe, round_name("dpo", number), settings, inputs)


def first_steps(trainer: Any, tokenizer: Any) -> None:
    """Leave of each pair the line in which chosen and rejected part; what they share before it joins the prompt.

    Step-DPO (Lai et al. 2024, arXiv 2406.18629), with the line as the step: the loss then blames the first error and nothing
    that follows from it. Acts on the trainer's tokenised rows.
    """
    if audits.sees_images(trainer):
        raise UserError(
            "pairs.compare=step cuts text and works without images alone: set pairs.compare=answer"
        )
    breaks = {i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])}

    def cut(row: dict[str, list[int]]) -> dict[str, list[int]]:
        chosen, rejected = row["chosen_ids"], row["rejected_ids"]
        start = shared(chosen, rejected)

        def line(ids: list[int]) -> list[int]:
            return ids[start : next((i + 1 for i in range(start, len(ids)) if ids[i] in breaks), len(ids))]

        return {
            "prompt_ids": row["prompt_ids"] + chosen[:start],
            "chosen_ids": line(chosen),
            "rejected_ids": line(rejected),
        }

    trainer.train_dataset = trainer.train_dataset.map(cut)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = trainer.eval_dataset.map(cut)

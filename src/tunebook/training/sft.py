"""`tunebook sft`: supervised fine-tuning of a LoRA adapter on prompt + completion rows.

    uv run tunebook sft --recipe smollm2-math --set sft.learning_rate=2e-4

Twin of `dpo.py`: load the recipe, the rows and the model, audit, train, save, record.
"""

from __future__ import annotations

from typing import Any

from tunebook.data.prepare import data_stage, prepare
from tunebook.data.storage import load, training_rows
from tunebook.models import adapters, backend, loading
from tunebook.recipe.sections import Recipe
from tunebook.runs.stage import Stage
from tunebook.training import arguments, audits, memory
from tunebook.training.trainer import train

COLUMNS = ["prompt", "completion", "images"]


def sft(recipe: Recipe, force: bool = False, resume: bool = True) -> dict[str, Any]:
    """Train the adapter in `sft/adapter` of the run folder, unless it lies there already; returns the stage's record.

    Prepares the data first where it is missing. Loss is on the completion alone. With `resume`, an interrupted run of
    the same settings goes on from its last checkpoint.

    Raises UserError when the mask audit fails (no token, or every token, would be trained on).
    """
    print(recipe.describe())
    stage = sft_stage(recipe)
    if stage.skip(force):
        return stage.result
    backend.backend()  # Unsloth comes before whatever imports transformers
    prepared = prepare(recipe)
    rows = training_rows(recipe, "sft")
    with stage.open(resume and not force) as folder:
        from trl import SFTConfig, SFTTrainer

        args, callbacks = arguments.arguments(SFTConfig, recipe, "sft", folder)
        val = arguments.eval_rows(
            args, arguments.only(COLUMNS, load(recipe, "val")), "sft", "`val` of a data source"
        )
        needed = memory.preflight(recipe, args, rows, "sft")
        model, tokenizer = loading.load(recipe)
        model = adapters.add_lora(model, recipe)
        trainer = SFTTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=arguments.only(COLUMNS, rows),
            eval_dataset=val,
            callbacks=callbacks,
        )
        if kept := prepared["rows"]["train"] - len(rows):
            print(
                f"{len(rows)} rows; {kept} of the train rows are kept for preference pairs (`use` of a source, data.for_pairs)"
            )
        masks = audits.audit_mask(trainer, tokenizer)
        metrics = train(trainer, folder)
        stage.record = {
            "audit": masks,
            "metrics": metrics,
            "rows": {"train": len(trainer.train_dataset)},
            "preflight": needed,
        }
        stage.record["learnt"] = [prepared["fingerprints"]["train"]]
        adapters.save_adapter(model, tokenizer, folder / "adapter")
    return stage.result


def sft_stage(recipe: Recipe) -> Stage:
    """The stage that `sft` fills: what the adapter depends on."""
    settings = {
        "model": recipe.model.model_dump(mode="json"),
        "lora": recipe.lora,
        "sft": recipe.sft,
        "seed": recipe.seed,
    }
    return Stage(recipe, "sft", settings, {"data": data_stage(recipe).key})

"""`tunebook sft`: supervised fine-tuning of a LoRA adapter on rows of prompt and completion.

    uv run tunebook sft --recipe smollm2-math --set sft.learning_rate=2e-4

Twin of `dpo.py`: recipe, rows, arguments, model, adapter, trainer, audit, training, record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunebook.data.prepare import data_stage, prepare
from tunebook.data.storage import load, training_rows
from tunebook.models import adapters, backend, loading
from tunebook.recipe.overrides import switch
from tunebook.recipe.sections import Recipe
from tunebook.runs.stage import Stage
from tunebook.training import arguments, audits, memory
from tunebook.training.masks import masked_splits
from tunebook.training.trainer import train

COLUMNS = ["prompt", "completion", "images", "input_ids", "assistant_masks"]


def sft(recipe: Recipe, force: bool = False, resume: bool = True, fresh: bool = False) -> dict[str, Any]:
    """Train the adapter in `sft/adapter` of the run folder, unless it lies there already; returns the record.

    Prepares the data first where it is missing. Loss is on the turns that `data.train_on` names. With
    `resume`, an interrupted run goes on from its last checkpoint, if the weights depend on nothing that has
    changed; `fresh` starts over.

    Raises UserError when an interrupted run of settings that lead to another result is there, and when an
    audit fails: no token or every token would be trained on, or the end token cannot be learnt.
    """
    print(recipe.describe())
    stage = sft_stage(recipe)
    force = switch("force", force)
    start_over = force or switch("fresh", fresh) or not switch("resume", resume, default=True)
    if stage.skip(force):
        return stage.result
    backend.backend()  # Unsloth comes before whatever imports transformers
    prepared = prepare(recipe)
    rows = {"train": training_rows(recipe, "sft"), "val": load(recipe, "val")}
    kept = prepared["rows"]["train"] - len(rows["train"])
    if kept:
        print(
            f"{len(rows['train'])} rows; {kept} of the train rows are kept for preference pairs "
            "(`use` of a source, data.for_pairs)"
        )
    with stage.open(resume=not start_over) as folder:
        args = sft_arguments(recipe, rows, folder)
        memory.choose_batch(recipe, args, rows["train"], "sft")
        needed = memory.preflight(recipe, args, rows["train"], "sft")
        model, tokenizer = loading.load(recipe)
        model = adapters.add_lora(model, recipe)
        with arguments.refusals("sft"):
            trainer = sft_trainer(model, tokenizer, rows, recipe, args)
        audit = audits.audit_masks(trainer, tokenizer)
        audit["end_token"] = audits.audit_end_token(trainer, tokenizer)
        metrics = train(trainer, folder)
        adapters.save_adapter(model, tokenizer, folder / "adapter")
        questions = rows["val"] if len(rows["val"]) else rows["train"]
        stage.record = {
            "audit": audit,
            "metrics": metrics,
            "answers": audits.audit_answers(model, tokenizer, questions),
            "rows": {"train": len(trainer.train_dataset)},
            "preflight": needed,
            "learnt": [prepared["fingerprints"]["train"]],
        }
    del trainer, model
    backend.release()
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


def sft_arguments(recipe: Recipe, rows: dict[str, Any], folder: Path) -> Any:
    """TRL's SFTConfig of the recipe's `sft` section; checkpoints go to `folder`."""
    from trl import SFTConfig

    args = arguments.trainer_arguments(SFTConfig, recipe, "sft", folder)
    arguments.check_val_rows(args, rows["val"], "sft", "`val` of a data source")
    return args


def sft_trainer(model: Any, tokenizer: Any, rows: dict[str, Any], recipe: Recipe, args: Any) -> Any:
    """TRL's SFTTrainer of a model with an adapter on it. `rows` are the splits `train` and `val`."""
    from trl import SFTTrainer

    rows = masked_splits(rows, tokenizer, recipe.data.train_on)
    return SFTTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=arguments.only(COLUMNS, rows["train"]),
        eval_dataset=arguments.eval_rows(args, arguments.only(COLUMNS, rows["val"])),
        callbacks=arguments.trainer_callbacks(recipe, "sft", args),
    )

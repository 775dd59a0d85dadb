"""`tunebook sft`: supervised fine-tuning of a LoRA adapter on rows of prompt and completion.

    uv run tunebook sft --recipe smollm2-math --set sft.learning_rate=2e-4

Twin of `dpo.py`: recipe, rows, arguments, model, adapter, trainer, audit, training. `notebooks/02_sft.ipynb`
makes the same calls, a cell each.
"""

from __future__ import annotations

from typing import Any

from tunebook.data.prepare import data_stage, prepare
from tunebook.data.storage import load, training_rows
from tunebook.models import adapters, backend, loading
from tunebook.recipe.sections import Recipe
from tunebook.runs.stage import Stage
from tunebook.training import arguments, audits, memory
from tunebook.training.masks import masked_splits
from tunebook.training.trainer import How, train

COLUMNS = ["prompt", "completion", "images", "input_ids", "assistant_masks"]


def sft(recipe: Recipe, force: bool = False, resume: bool = True, fresh: bool = False) -> dict[str, Any]:
    """Train the adapter in `sft/adapter` of the run folder, unless it lies there already; returns the record.

    Prepares the data first where it is missing. Loss is on the turns that `data.train_on` names. With
    `resume`, an interrupted run goes on from its last checkpoint, if the weights depend on nothing that has
    changed; `fresh` starts over.

    Raises UserError when an interrupted run of settings that lead to another result is there, and when the
    mask audit fails (no token, or every token, would be trained on).
    """
    print(recipe.describe())
    how = How(force, resume, fresh)
    stage = sft_stage(recipe)
    if stage.skip(how.force):
        return stage.result
    stage.check(how.resume)
    # 1) what is wrong with rows, settings or memory is said before a model is loaded
    rows = sft_rows(recipe)
    args = sft_arguments(recipe, rows)
    needed = memory.preflight(recipe, args, rows["train"], "sft")
    # 2) Unsloth's model and adapter, TRL's trainer
    model, tokenizer = loading.load_model(recipe)
    model = adapters.add_lora(model, recipe)
    trainer = sft_trainer(model, tokenizer, rows, recipe, args)
    # 3) a wrong mask is found before the first step
    audit = audits.audit_masks(trainer, tokenizer)
    return train_sft(trainer, recipe, {"audit": audit, "preflight": needed}, force, resume, fresh)


def sft_stage(recipe: Recipe) -> Stage:
    """The stage that `sft` fills: what the adapter depends on."""
    settings = {
        "model": recipe.model.model_dump(mode="json"),
        "lora": recipe.lora,
        "sft": recipe.sft,
        "seed": recipe.seed,
    }
    return Stage(recipe, "sft", settings, {"data": data_stage(recipe).key})


def sft_rows(recipe: Recipe) -> dict[str, Any]:
    """The rows of the splits `train` and `val`; prepares them where they are missing."""
    backend.backend()  # Unsloth comes before whatever imports transformers
    prepared = prepare(recipe)
    rows = {"train": training_rows(recipe, "sft"), "val": load(recipe, "val")}
    kept = prepared["rows"]["train"] - len(rows["train"])
    if kept:
        print(
            f"{len(rows['train'])} rows; {kept} of the train rows are kept for preference pairs "
            "(`use` of a source, data.for_pairs)"
        )
    return rows


def sft_arguments(recipe: Recipe, rows: dict[str, Any]) -> Any:
    """TRL's SFTConfig of the recipe's `sft` section; checkpoints go to the folder of the unfinished stage."""
    from trl import SFTConfig

    args = arguments.trainer_arguments(SFTConfig, recipe, "sft", sft_stage(recipe).partial)
    arguments.check_val_rows(args, rows["val"], "sft", "`val` of a data source")
    return args


def sft_trainer(model: Any, tokenizer: Any, rows: dict[str, Any], recipe: Recipe, args: Any) -> Any:
    """TRL's SFTTrainer of a model with an adapter on it. `rows` are the splits `train` and `val`."""
    from trl import SFTTrainer

    rows = masked_splits(rows, tokenizer, recipe.data.train_on)
    with arguments.refusals("sft"):
        return SFTTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=arguments.only(COLUMNS, rows["train"]),
            eval_dataset=arguments.eval_rows(args, arguments.only(COLUMNS, rows["val"])),
            callbacks=arguments.trainer_callbacks(recipe, "sft", args),
        )


def train_sft(
    trainer: Any,
    recipe: Recipe,
    record: dict[str, Any],
    force: bool = False,
    resume: bool = True,
    fresh: bool = False,
) -> dict[str, Any]:
    """Train, save the adapter into `sft/adapter`, and write the stage's record: `record` and the metrics.

    Where the same adapter lies there already, it is put into the trainer's model, and nothing is trained.
    """
    stage = sft_stage(recipe)
    how = How(force, resume, fresh)
    if stage.skip(how.force):
        # So that the cells of a notebook below this one ask the trained model.
        adapters.restore_lora(trainer.model, stage.dir / "adapter")
        return stage.result
    with stage.open(how.resume) as folder:
        trained = train(trainer, folder)
        learnt = data_stage(recipe).result["fingerprints"]["train"]
        stage.record = record | trained | {"learnt": [learnt]}
    return stage.result

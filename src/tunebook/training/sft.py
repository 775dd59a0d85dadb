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
from tunebook.runs.files import fingerprint, read_json
from tunebook.runs.machine import rank
from tunebook.runs.stage import Stage, finished_key
from tunebook.training import arguments, audits, end_token, memory
from tunebook.training.masks import masked_splits
from tunebook.training.trainer import How, train

COLUMNS = ["prompt", "completion", "images", "input_ids", "assistant_masks"]


def sft(
    recipe: Recipe, force: bool = False, resume: bool = True, fresh: bool = False, go_on: bool = False
) -> dict[str, Any]:
    """Train the adapter in `sft/adapter` of the run folder, unless it lies there already; returns the record.

    Prepares the data first where it is missing. Loss is on the turns that `data.train_on` names. With
    `resume`, an interrupted run goes on from its last checkpoint, if the weights depend on nothing that has
    changed; `fresh` starts over. With `go_on` (`--continue`) training begins at the finished adapter, which
    stays in its place until the new one is whole; steps and epochs are those that are added.

    Raises UserError when an interrupted run of settings that lead to another result is there, and when an
    audit fails: no token or every token would be trained on, or the end token cannot be learnt.
    """
    print(recipe.describe())
    how = How(force, resume, fresh)
    stage = sft_stage(recipe, go_on, how.force)
    if stage.skip(how.force):
        if go_on:
            print("It was continued with these settings already: --continue --force does so once more")
        return stage.result
    stage.check(how.resume)
    record: dict[str, Any] = {}
    if go_on:
        record["continued_from"] = _continued_from(stage)
    # 1) what is wrong with rows, settings or memory is said before a model is loaded
    rows = sft_rows(recipe)
    args = sft_arguments(recipe, rows)
    record["preflight"] = memory.preflight(recipe, args, rows["train"], "sft")
    # 2) Unsloth's model and adapter, TRL's trainer
    model, tokenizer = loading.load_model(recipe)
    model = adapters.add_lora(model, recipe)
    if go_on:
        model = adapters.restore_lora(model, stage.dir / "adapter")
    trainer = sft_trainer(model, tokenizer, rows, recipe, args)
    # 3) a wrong mask, or an end that cannot be learnt, is found before the first step
    record["audit"] = audits.audit_masks(trainer, tokenizer)
    record["audit"]["end_token"] = end_token.audit_end_token(trainer, tokenizer)
    result = train_sft(trainer, rows, recipe, record, force, resume, fresh)
    del trainer, model
    backend.release()
    return result


def sft_stage(recipe: Recipe, go_on: bool = False, force: bool = False) -> Stage:
    """The stage that `sft` fills: what the adapter depends on.

    An adapter that was continued with the recipe's settings is up to date, wherever it began; with `force`
    nothing is. With `go_on` an adapter begins at the finished one.

    Raises UserError when there is none to go on with.
    """
    finished = read_json(recipe.run_dir / "sft" / "stage.json")
    begun_at = finished.get("settings", {}).get("continued_from", "")
    if begun_at and not force:
        continued = _stage(recipe, begun_at)
        if continued.done:
            return continued
    if not go_on:
        return _stage(recipe)
    # The key may be of several adapters: a GPU gives other weights each time.
    return _stage(recipe, fingerprint([finished_key(recipe, "sft"), finished.get("files")]))


def _stage(recipe: Recipe, begun_at: str = "") -> Stage:
    """The stage of an adapter that begins at the base model, or at the adapter of that hash."""
    settings = {
        "model": recipe.model.model_dump(mode="json"),
        "lora": recipe.lora,
        "sft": recipe.sft,
        "seed": recipe.seed,
    }
    if begun_at:
        settings["continued_from"] = begun_at
    return Stage(recipe, "sft", settings, {"data": data_stage(recipe).key})


def _continued_from(stage: Stage) -> dict[str, Any]:
    """What is recorded of the adapter that training goes on with; says so."""
    finished = read_json(stage.dir / "stage.json")
    kept: dict[str, Any] = {}
    for name in ("key", "command", "settings", "rows", "learnt", "continued_from"):
        if name in finished:
            kept[name] = finished[name]
    # Also the steps before it was itself continued.
    kept["steps"] = finished["metrics"]["steps"] + finished.get("continued_from", {}).get("steps", 0)
    print(f"Continues {stage.dir / 'adapter'}, trained for {kept['steps']} steps.")
    return kept


def sft_rows(recipe: Recipe) -> dict[str, Any]:
    """The rows of the splits `train` and `val`; prepares them where they are missing."""
    backend.backend()  # Unsloth comes before whatever imports transformers
    prepared = prepare(recipe)
    val = load(recipe, "val")
    # Prompts whose answers the check decides on have none of their own.
    with_answers = [i for i, completion in enumerate(val["completion"]) if completion]
    rows = {"train": training_rows(recipe, "sft"), "val": val.select(with_answers)}
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
    memory.choose_batch(recipe, args, rows["train"], "sft")
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
    rows: dict[str, Any],
    recipe: Recipe,
    record: dict[str, Any],
    force: bool = False,
    resume: bool = True,
    fresh: bool = False,
) -> dict[str, Any]:
    """Train, save the adapter into `sft/adapter`, and write the stage's record: `record` and the metrics.

    `record` says with `continued_from` that the trainer's adapter is the finished one (`--continue`).

    Where the same adapter lies there already, it is put into the trainer's model, and nothing is trained.
    """
    how = How(force, resume, fresh)
    before = record.get("continued_from", {})
    stage = sft_stage(recipe, bool(before), how.force)
    if stage.skip(how.force):
        # So that the cells of a notebook below this one ask the trained model.
        adapters.restore_lora(trainer.model, stage.dir / "adapter")
        return stage.result
    with stage.open(how.resume) as folder:
        trained = train(trainer, folder)
        fingerprint_now = data_stage(recipe).result["fingerprints"]["train"]
        learnt = sorted({fingerprint_now, *before.get("learnt", [])})
        if len(learnt) > 1:
            print(
                "Warning: the adapter has learnt other rows than these, and a held-out row may be one of "
                "them: `tunebook evaluate` will refuse it"
            )
        stage.record = record | trained | {"learnt": learnt}
    # A model whose answers do not end is found out now, not after an evening. Its adapter is safe by then.
    if rank() == 0:
        asked = rows["val"] if len(rows["val"]) else rows["train"]
        answers = end_token.audit_answers(trainer.model, trainer.processing_class, asked)
        stage.add_to_record({"answers": answers})
    return stage.result

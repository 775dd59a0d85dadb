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
from tunebook.runs.files import fingerprint, read_json
from tunebook.runs.stage import Stage, finished_key
from tunebook.training import arguments, audits, memory
from tunebook.training.masks import masked_splits
from tunebook.training.trainer import train

COLUMNS = ["prompt", "completion", "images", "input_ids", "assistant_masks"]


def sft(
    recipe: Recipe, force: bool = False, resume: bool = True, fresh: bool = False, go_on: bool = False
) -> dict[str, Any]:
    """Train the adapter in `sft/adapter` of the run folder, unless it lies there already; returns the record.

    Prepares the data first where it is missing. Loss is on the turns that `data.train_on` names. With
    `resume`, an interrupted run goes on from its last checkpoint, if the weights depend on nothing that has
    changed; `fresh` starts over. With `go_on` (`--continue`) training begins at the finished adapter, which
    stays in its place until the new one is whole; steps and epochs are those that are added.

    Raises UserError when an interrupted run of settings that lead to another result is there, and when the
    mask audit fails (no token, or every token, would be trained on).
    """
    print(recipe.describe())
    stage = sft_stage(recipe)
    force = switch("force", force)
    start_over = force or switch("fresh", fresh) or not switch("resume", resume, default=True)
    go_on = switch("go_on", go_on)
    if force or (go_on and "continued_from" not in stage.settings):
        stage = _stage(recipe, _finished_adapter(recipe) if go_on else "")
    if stage.skip(force):
        if go_on:
            print("It was continued with these settings already: --continue --force does so once more")
        return stage.result
    before = read_json(stage.dir / "stage.json") if go_on else {}
    backend.backend()  # Unsloth comes before whatever imports transformers
    prepared = prepare(recipe)
    if set(before.get("learnt", [])) - {prepared["fingerprints"]["train"]}:
        print(
            "Warning: the adapter has learnt other rows than these, and a held-out row may be one of them: "
            "`tunebook evaluate` will refuse it"
        )
    rows = {"train": training_rows(recipe, "sft"), "val": load(recipe, "val")}
    kept = prepared["rows"]["train"] - len(rows["train"])
    if kept:
        print(
            f"{len(rows['train'])} rows; {kept} of the train rows are kept for preference pairs "
            "(`use` of a source, data.for_pairs)"
        )
    with stage.open(resume=not start_over) as folder:
        args = sft_arguments(recipe, rows, folder)
        needed = memory.preflight(recipe, args, rows["train"], "sft")
        model, tokenizer = loading.load(recipe)
        model = adapters.add_lora(model, recipe)
        if go_on:
            model = adapters.restore_lora(model, stage.dir / "adapter")
            print(f"Continues {stage.dir / 'adapter'}, trained for {_steps(before)} steps.")
        with arguments.refusals("sft"):
            trainer = sft_trainer(model, tokenizer, rows, recipe, args)
        audit = audits.audit_masks(trainer, tokenizer)
        metrics = train(trainer, folder)
        adapters.save_adapter(model, tokenizer, folder / "adapter")
        stage.record = {
            "audit": audit,
            "metrics": metrics,
            "rows": {"train": len(trainer.train_dataset)},
            "preflight": needed,
            "learnt": sorted({prepared["fingerprints"]["train"], *before.get("learnt", [])}),
        }
        if go_on:
            kept = ("key", "command", "settings", "rows", "continued_from")
            stage.record["continued_from"] = {name: before[name] for name in kept if name in before}
            stage.record["continued_from"]["steps"] = _steps(before)
    return stage.result


def sft_stage(recipe: Recipe) -> Stage:
    """The stage that `sft` fills: what the adapter depends on.

    An adapter that was continued with the recipe's settings is up to date, wherever it began.
    """
    stage = _stage(recipe)
    begun_at = read_json(stage.dir / "stage.json").get("settings", {}).get("continued_from", "")
    if begun_at:
        continued = _stage(recipe, begun_at)
        if continued.done:
            return continued
    return stage


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


def _finished_adapter(recipe: Recipe) -> str:
    """A hash of the finished adapter. Raises UserError where there is none."""
    key = finished_key(recipe, "sft")
    return fingerprint([key, read_json(recipe.run_dir / "sft" / "stage.json").get("files")])


def _steps(record: dict[str, Any]) -> int:
    """The steps behind a finished adapter, those before it was continued among them."""
    return int(record["metrics"]["steps"]) + int(record.get("continued_from", {}).get("steps", 0))


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

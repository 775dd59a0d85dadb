"""`tunebook dpo`: direct preference optimisation (Rafailov et al. 2023) of an adapter on checked pairs.

    uv run tunebook dpo --recipe smollm2-math --set dpo.learning_rate=2e-4

Twin of `sft.py`: recipe, rows, arguments, model, adapter, trainer, audit, training, record. The reference is
the model it starts from (`dpo.start`): TRL keeps a frozen copy of that adapter under the name `ref`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunebook.data.prepare import data_stage
from tunebook.data.storage import read_rows
from tunebook.models import adapters, backend, loading
from tunebook.models.cpu.shared_prefixes import share_prefixes
from tunebook.models.prefix import common_start
from tunebook.models.start import start, with_shape_of
from tunebook.pairs.pairs import existing_pairs, pairs_stage
from tunebook.recipe.errors import UserError
from tunebook.recipe.overrides import switch
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json
from tunebook.runs.stage import Stage, finished_key
from tunebook.runs.stages import policy_name, round_name
from tunebook.training import arguments, audits, memory
from tunebook.training.callbacks import preference_warnings, watch_preferences
from tunebook.training.trainer import train

COLUMNS = ["prompt", "chosen", "rejected", "images"]


def dpo(
    recipe: Recipe, number: int = 1, force: bool = False, resume: bool = True, fresh: bool = False
) -> dict[str, Any]:
    """Train the adapter in `dpo/adapter` of the run folder, unless it lies there already; returns the record.

    A later round (`number`) fills `dpo-2/`, ... and starts from the one before, which is then its reference.

    Raises UserError when pairs or the adapter to start from are missing, when an interrupted run of settings
    that lead to another result is there (`fresh` starts over), or when policy and reference differ before the
    first step.
    """
    print(recipe.describe())
    start(recipe)
    existing_pairs(recipe, number)
    stage = dpo_stage(recipe, number)
    force = switch("force", force)
    start_over = force or switch("fresh", fresh) or not switch("resume", resume, default=True)
    if stage.skip(force):
        return stage.result
    pairs = pairs_stage(recipe, number)
    policy = policy_name(recipe, number)
    if not pairs.done:
        raise UserError(
            f"the pairs in {pairs.dir} are of other settings or another {policy} model: "
            f"run `{recipe.command('pairs')}` again"
        )
    backend.backend()  # Unsloth comes before whatever imports transformers
    rows = {split: read_rows(recipe, pairs.dir / f"{split}.parquet") for split in ("train", "val")}
    if policy_name(recipe, 1) == "start":
        recipe = with_shape_of(recipe, recipe.run_dir / "start" / "adapter")
    with stage.open(resume=not start_over) as folder:
        args = dpo_arguments(recipe, rows, folder)
        memory.choose_batch(recipe, args, rows["train"], "dpo")
        needed = memory.preflight(recipe, args, rows["train"], "dpo")
        model, tokenizer = loading.load(recipe)
        model = adapters.add_lora(model, recipe)
        if policy != "base":
            model = adapters.restore_lora(model, recipe.run_dir / policy / "adapter")
        with arguments.refusals("dpo"):
            trainer = dpo_trainer(model, tokenizer, rows, recipe, args)
        audit: dict[str, Any] = dict(audits.audit_step_0(trainer, tokenizer))
        audit["end_token"] = audits.audit_end_token(trainer, tokenizer)
        metrics = train(trainer, folder)
        adapters.save_adapter(model, tokenizer, folder / "adapter")
        stage.record = {
            "audit": audit,
            "metrics": metrics,
            "warnings": preference_warnings(trainer.state.log_history, args.beta),
            "rows": {"train": len(trainer.train_dataset)},
            "preflight": needed,
            "learnt": _learnt(recipe, policy),
        }
        if audits.sees_images(trainer):
            compared = rows["val"] if len(rows["val"]) else rows["train"]
            stage.record["image_margins"] = audits.image_margins(trainer, arguments.only(COLUMNS, compared))
    del trainer, model
    backend.release()
    return stage.result


def dpo_stage(recipe: Recipe, number: int = 1) -> Stage:
    """The stage that `dpo` fills in a round.

    Raises UserError when the pairs or the adapter to start from are missing.
    """
    settings = {
        "model": recipe.model.model_dump(mode="json"),
        "lora": recipe.lora,
        "dpo": recipe.dpo,
        "seed": recipe.seed,
        "compare": recipe.pairs.compare,
    }
    made_from = [round_name("pairs", number)]
    if policy_name(recipe, number) != "base":
        made_from.append(policy_name(recipe, number))
    inputs = {name: finished_key(recipe, name) for name in made_from}
    return Stage(recipe, round_name("dpo", number), settings, inputs)


def _learnt(recipe: Recipe, policy: str) -> list[str]:
    """Fingerprints of the train splits behind the adapter that it starts from, and behind its pairs."""
    fingerprints = set(read_json(recipe.run_dir / policy / "stage.json").get("learnt", []))
    fingerprints.add(data_stage(recipe).result.get("fingerprints", {}).get("train"))
    return sorted(fingerprints - {None})


def dpo_arguments(recipe: Recipe, rows: dict[str, Any], folder: Path) -> Any:
    """TRL's DPOConfig of the recipe's `dpo` section; checkpoints go to `folder`."""
    from trl import DPOConfig

    args = arguments.trainer_arguments(DPOConfig, recipe, "dpo", folder)
    # TRL and Unsloth multiply the loss by the weights in place, and the sft loss is one number for all rows.
    if args.use_weighting and "sft" in args.loss_type:
        raise UserError(
            "dpo.use_weighting cannot weight the sft loss: "
            "set dpo.loss_type=[sigmoid] and dpo.loss_weights=[1.0]"
        )
    arguments.check_val_rows(args, rows["val"], "dpo", "pairs.val")
    return args


def dpo_trainer(model: Any, tokenizer: Any, rows: dict[str, Any], recipe: Recipe, args: Any) -> Any:
    """TRL's DPOTrainer of a model with its start adapter on it. `rows` are the splits `train` and `val`."""
    from trl import DPOTrainer

    if recipe.model.share_prompts:
        share_prefixes(model)
    callbacks = arguments.trainer_callbacks(recipe, "dpo", args)
    trainer = DPOTrainer(
        model=model,
        ref_model=None,
        args=args,
        processing_class=tokenizer,
        train_dataset=arguments.only(COLUMNS, rows["train"]),
        eval_dataset=arguments.eval_rows(args, arguments.only(COLUMNS, rows["val"])),
        callbacks=[*callbacks, watch_preferences(args.beta)],
    )
    if recipe.pairs.compare == "step":
        first_steps(trainer, tokenizer)
    return trainer


def first_steps(trainer: Any, tokenizer: Any) -> None:
    """Leave of each pair the line in which chosen and rejected part; what they share before joins the prompt.

    Step-DPO (Lai et al. 2024, arXiv 2406.18629), with the line as the step: the loss then blames the first
    error and nothing that follows from it. Acts on the trainer's tokenised rows.
    """
    if audits.sees_images(trainer):
        raise UserError(
            "pairs.compare=step cuts text and works without images alone: set pairs.compare=answer"
        )
    breaks = {token for token in range(len(tokenizer)) if "\n" in tokenizer.decode([token])}

    def line(ids: list[int], start: int) -> list[int]:
        for i in range(start, len(ids)):
            if ids[i] in breaks:
                return ids[start : i + 1]
        return ids[start:]

    def cut(row: dict[str, list[int]]) -> dict[str, list[int]]:
        chosen, rejected = row["chosen_ids"], row["rejected_ids"]
        start = common_start(chosen, rejected)
        return {
            "prompt_ids": row["prompt_ids"] + chosen[:start],
            "chosen_ids": line(chosen, start),
            "rejected_ids": line(rejected, start),
        }

    trainer.train_dataset = trainer.train_dataset.map(cut)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = trainer.eval_dataset.map(cut)

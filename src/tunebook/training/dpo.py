"""`tunebook dpo`: direct preference optimisation (Rafailov et al. 2023) of an adapter on checked pairs.

    uv run tunebook dpo --recipe smollm2-math --set dpo.learning_rate=2e-4

Twin of `sft.py`: recipe, rows, arguments, model, adapter, trainer, audit, training. `notebooks/04_dpo.ipynb`
makes the same calls, a cell each. The reference is the model it starts from (`dpo.start`): TRL keeps a frozen
copy of that adapter under the name `ref`.
"""

from __future__ import annotations

from typing import Any

from tunebook.data.prepare import data_stage
from tunebook.data.storage import read_rows
from tunebook.models import adapters, backend, loading
from tunebook.models.cpu.shared_prefixes import share_prefixes
from tunebook.models.prefix import common_start
from tunebook.models.start import start, with_shape_of_start
from tunebook.pairs.pairs import existing_pairs, pairs_stage
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json
from tunebook.runs.stage import Stage, finished_key
from tunebook.runs.stages import CONTROL, policy_name, round_name
from tunebook.training import arguments, audits, end_token, memory
from tunebook.training.callbacks import preference_warnings, watch_preferences
from tunebook.training.loss_parts import log_loss_parts
from tunebook.training.trainer import How, train

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
    result = _dpo(recipe, number, How(force, resume, fresh))
    if number == 1 and recipe.dpo.get("control"):
        dpo_control(recipe, force, resume, fresh)
    return result


def dpo_control(
    recipe: Recipe, force: bool = False, resume: bool = True, fresh: bool = False
) -> dict[str, Any]:
    """Train DPO's control into `dpo-control/adapter`; returns the record. Raises what `dpo` raises."""
    print("The control: the likelihood of the same chosen answers, without the rejected ones")
    return _dpo(likelihood_alone(recipe), 1, How(force, resume, fresh), control=True)


def likelihood_alone(recipe: Recipe) -> Recipe:
    """The recipe of DPO's control: same pairs, steps, batches and rate; the loss sees no rejected answer.

    What preference has taught is what DPO gains over it.
    """
    dropped = ("loss_weights", "label_smoothing", "use_weighting")
    section = {key: value for key, value in recipe.dpo.items() if key not in dropped}
    return recipe.model_copy(update={"dpo": {**section, "loss_type": ["sft"]}})


def _dpo(recipe: Recipe, number: int, how: How, control: bool = False) -> dict[str, Any]:
    """Train DPO or, of a recipe of `likelihood_alone`, its control."""
    # 1) what the stage's key depends on
    start(recipe)
    existing_pairs(recipe, number)
    stage = dpo_stage(recipe, number, control)
    if stage.skip(how.force):
        return stage.result
    stage.check(how.resume)
    # 2) what is wrong with pairs, settings or memory is said before a model is loaded
    rows = dpo_rows(recipe, number)
    args = dpo_arguments(recipe, rows, number, control)
    needed = memory.preflight(recipe, args, rows["train"], "dpo")
    # 3) Unsloth's model with the adapter to go on from, TRL's trainer
    model, tokenizer = loading.load_model(recipe)
    model = add_policy(model, recipe, number)
    trainer = dpo_trainer(model, tokenizer, rows, recipe, args)
    # 4) a wrong reference is found before the first step
    audit: dict[str, Any] = dict(audits.audit_step_0(trainer, tokenizer))
    audit["end_token"] = end_token.audit_end_token(trainer, tokenizer)
    record = {"audit": audit, "preflight": needed}
    result = train_dpo(trainer, rows, recipe, record, number, *how, control=control)
    del trainer, model
    backend.release()
    return result


def dpo_stage(recipe: Recipe, number: int = 1, control: bool = False) -> Stage:
    """The stage that `dpo` fills in a round, or that of its control.

    Raises UserError when the pairs or the adapter to start from are missing.
    """
    settings = {
        "model": recipe.model.model_dump(mode="json"),
        "lora": recipe.lora,
        # Whether there is a control changes nothing in DPO's own adapter.
        "dpo": {key: value for key, value in recipe.dpo.items() if key != "control"},
        "seed": recipe.seed,
        "compare": recipe.pairs.compare,
    }
    made_from = [round_name("pairs", number)]
    if policy_name(recipe, number) != "base":
        made_from.append(policy_name(recipe, number))
    inputs = {name: finished_key(recipe, name) for name in made_from}
    return Stage(recipe, CONTROL if control else round_name("dpo", number), settings, inputs)


def dpo_control_stage(recipe: Recipe) -> Stage:
    """The stage of the control in a recipe whose `dpo` is that of DPO itself."""
    return dpo_stage(likelihood_alone(recipe), control=True)


def _learnt(recipe: Recipe, policy: str) -> list[str]:
    """Fingerprints of the train splits behind the adapter that it starts from, and behind its pairs."""
    fingerprints = set(read_json(recipe.run_dir / policy / "stage.json").get("learnt", []))
    fingerprints.add(data_stage(recipe).result.get("fingerprints", {}).get("train"))
    return sorted(fingerprints - {None})


def dpo_rows(recipe: Recipe, number: int = 1) -> dict[str, Any]:
    """The pairs of the splits `train` and `val`; reads a preference set where the recipe has nothing else.

    Raises UserError when they are missing, or of another model than the one that DPO starts from.
    """
    start(recipe)
    existing_pairs(recipe, number)
    finished_key(recipe, round_name("pairs", number))  # says it where there are none
    pairs = pairs_stage(recipe, number)
    if not pairs.done:
        raise UserError(
            f"the pairs in {pairs.dir} are of other settings or another {policy_name(recipe, number)} model: "
            f"run `{recipe.command('pairs')}` again"
        )
    backend.backend()  # Unsloth comes before whatever imports transformers
    return {split: read_rows(recipe, pairs.dir / f"{split}.parquet") for split in ("train", "val")}


def dpo_arguments(recipe: Recipe, rows: dict[str, Any], number: int = 1, control: bool = False) -> Any:
    """TRL's DPOConfig of the recipe's `dpo` section; checkpoints go to the folder of the unfinished stage."""
    from trl import DPOConfig

    args = arguments.trainer_arguments(DPOConfig, recipe, "dpo", dpo_stage(recipe, number, control).partial)
    # TRL and Unsloth multiply the loss by the weights in place, and the sft loss is one number for all rows.
    if args.use_weighting and "sft" in args.loss_type:
        raise UserError(
            "dpo.use_weighting cannot weight the sft loss: "
            "set dpo.loss_type=[sigmoid] and dpo.loss_weights=[1.0]"
        )
    arguments.check_val_rows(args, rows["val"], "dpo", "pairs.val")
    memory.choose_batch(recipe, args, rows["train"], "dpo")
    return args


def add_policy(model: Any, recipe: Recipe, number: int = 1) -> Any:
    """Put on a base model the adapter that DPO starts from, to be trained further.

    It is SFT's, that of `dpo.start`, that of the round before, or a fresh one.
    """
    policy = policy_name(recipe, number)
    model = adapters.add_lora(model, with_shape_of_start(recipe))
    if policy == "base":
        return model
    return adapters.restore_lora(model, recipe.run_dir / policy / "adapter")


def dpo_trainer(model: Any, tokenizer: Any, rows: dict[str, Any], recipe: Recipe, args: Any) -> Any:
    """TRL's DPOTrainer of a model with its start adapter on it. `rows` are the splits `train` and `val`."""
    from trl import DPOTrainer

    if recipe.model.share_prompts:
        share_prefixes(model)
    callbacks = arguments.trainer_callbacks(recipe, "dpo", args)
    with arguments.refusals("dpo"):
        trainer = DPOTrainer(
            model=model,
            ref_model=None,
            args=args,
            processing_class=tokenizer,
            train_dataset=arguments.only(COLUMNS, rows["train"]),
            eval_dataset=arguments.eval_rows(args, arguments.only(COLUMNS, rows["val"])),
            callbacks=[*callbacks, watch_preferences(args.beta)],
        )
    log_loss_parts(trainer)
    if recipe.pairs.compare == "step":
        first_steps(trainer, tokenizer)
    return trainer


def train_dpo(
    trainer: Any,
    rows: dict[str, Any],
    recipe: Recipe,
    record: dict[str, Any],
    number: int = 1,
    force: bool = False,
    resume: bool = True,
    fresh: bool = False,
    control: bool = False,
) -> dict[str, Any]:
    """Train, save the adapter into `dpo/adapter`, and write the stage's record: `record`, metrics, warnings.

    Where the same adapter lies there already, it is put into the trainer's model, and nothing is trained.
    """
    stage = dpo_stage(recipe, number, control)
    how = How(force, resume, fresh)
    if stage.skip(how.force):
        # So that the cells of a notebook below this one ask the trained model.
        adapters.restore_lora(trainer.model, stage.dir / "adapter")
        return stage.result
    with stage.open(how.resume) as folder:
        stage.record = record | train(trainer, folder)
        stage.record["warnings"] = preference_warnings(trainer.state.log_history, trainer.args.beta)
        stage.record["learnt"] = _learnt(recipe, policy_name(recipe, number))
        if audits.sees_images(trainer):
            compared = rows["val"] if len(rows["val"]) else rows["train"]
            stage.record["image_margins"] = audits.image_margins(trainer, arguments.only(COLUMNS, compared))
    return stage.result


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

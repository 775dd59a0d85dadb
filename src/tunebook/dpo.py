"""`tunebook dpo`: direct preference optimisation (Rafailov et al. 2023) of the SFT adapter on checked pairs.

    uv run tunebook dpo --recipe smollm2-math --set dpo.learning_rate=2e-4

Twin of `sft.py`: load the recipe, the rows and the model, audit, train, save, record. The reference is the SFT model:
TRL keeps a frozen copy of the adapter it starts from under the name `ref`.
"""

from __future__ import annotations

import math
from typing import Any

from tunebook import audit, memory, models, train
from tunebook.data.images import Instead, instead
from tunebook.data.prepare import data_stage, read_rows
from tunebook.pairs import pairs_stage
from tunebook.recipe import Recipe, UserError
from tunebook.run import Stage, finished_key, policy_name, read_json, round_name
from tunebook.sharing import shared

COLUMNS = ["prompt", "chosen", "rejected", "images"]


MARGINS = 64
"""Pairs whose margin is taken with other images too."""
KINDS: tuple[Instead, ...] = ("true", "blank", "swapped")


def dpo(recipe: Recipe, number: int = 1, force: bool = False, resume: bool = True) -> dict[str, Any]:
    """Train the adapter in `dpo/adapter` of the run folder (`dpo-2/`, ... in a later round), unless it lies there already;
    returns the stage's record.

    A later round starts from the round before, which is then its reference.

    Raises UserError when pairs or the SFT adapter are missing, or when policy and reference differ before the first step.
    """
    print(recipe.describe())
    stage = dpo_stage(recipe, number)
    if stage.skip(force):
        return stage.result
    pairs, start = pairs_stage(recipe, number), policy_name(number)
    if not pairs.done:
        raise UserError(f"the pairs in {pairs.dir} are of other settings or another {start} model: run `{recipe.command('pairs')}` again")
    models.backend()
    rows = {split: train.only(COLUMNS, read_rows(recipe, pairs.dir / f"{split}.parquet")) for split in ("train", "val")}
    with stage.open(resume and not force) as folder:
        from trl import DPOConfig, DPOTrainer

        args, callbacks = train.arguments(DPOConfig, recipe, "dpo", folder)
        if args.use_weighting and "sft" in args.loss_type:  # TRL and Unsloth multiply it in place, and it is one number for all rows
            raise UserError("dpo.use_weighting cannot weight the sft loss: set dpo.loss_type=[sigmoid] and dpo.loss_weights=[1.0]")
        val = train.eval_rows(args, rows["val"], "dpo", "pairs.val")
        needed = memory.preflight(recipe, args, rows["train"], "dpo")
        model, tokenizer = models.load(recipe)
        model = models.restore_lora(models.add_lora(model, recipe), recipe.run_dir / start / "adapter")
        health = watch(args.beta)
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
        if audit.sees_images(trainer):
            audit.audit_images(trainer, tokenizer)
        step_0 = audit_step_0(trainer)
        metrics = train.run(trainer, folder)
        counts = {"train": len(trainer.train_dataset)}
        stage.record = {"audit": step_0, "metrics": metrics, "warnings": health.warnings, "rows": counts, "preflight": needed}
        stage.record["learnt"] = _learnt(recipe, start)
        if audit.sees_images(trainer):
            stage.record["image_margins"] = image_margins(trainer, rows["val"] if len(rows["val"]) else rows["train"])
        models.save_adapter(model, tokenizer, folder / "adapter")
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
    if audit.sees_images(trainer):
        raise UserError("pairs.compare=step cuts text and works without images alone: set pairs.compare=answer")
    breaks = {i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])}

    def cut(row: dict[str, list[int]]) -> dict[str, list[int]]:
        chosen, rejected = row["chosen_ids"], row["rejected_ids"]
        start = shared(chosen, rejected)

        def line(ids: list[int]) -> list[int]:
            return ids[start : next((i + 1 for i in range(start, len(ids)) if ids[i] in breaks), len(ids))]

        return {"prompt_ids": row["prompt_ids"] + chosen[:start], "chosen_ids": line(chosen), "rejected_ids": line(rejected)}

    trainer.train_dataset = trainer.train_dataset.map(cut)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = trainer.eval_dataset.map(cut)


def audit_step_0(trainer: Any) -> dict[str, float]:
    """Before the first step policy and reference are the same model: the sigmoid loss is ln 2 and the margin 0.

    Raises UserError when they are not; training would start from a wrong reference.
    """
    loss, seen = _measured(trainer, [trainer.train_dataset[i] for i in range(min(audit.AUDITED, len(trainer.train_dataset)))])
    found = {"loss": loss, "margin": seen["rewards/margins"], "reward_chosen": seen["rewards/chosen"], "reward_rejected": seen["rewards/rejected"]}
    print(f"Step-0 audit: loss {loss:.4f} (ln 2 = {math.log(2):.4f}), margin {found['margin']:.4f}, logps/chosen {seen['logps/chosen']:.1f}")
    if not abs(loss - math.log(2)) <= 0.01 or max(abs(found["reward_chosen"]), abs(found["reward_rejected"])) > 0.01:
        raise UserError(
            f"step-0 audit: loss {loss:.4f} instead of ln 2, rewards {found['reward_chosen']:.3f} and {found['reward_rejected']:.3f} instead of 0: "
            "the reference is not the model that training starts from (wrong adapter, dropout, or other weights)"
        )
    return found


def image_margins(trainer: Any, rows: Any) -> dict[str, float]:
    """`rewards/margins` of pairs with their image, a blank one and another row's: a policy that does not look has the same each time."""
    rows = rows.select(range(min(len(rows), MARGINS)))
    size = trainer.args.per_device_eval_batch_size
    out: dict[str, float] = {}
    for kind in KINDS:
        shown = [row | {"images": images} for row, images in zip(rows, instead(kind, list(rows["images"])), strict=True)]
        batches = [shown[i : i + size] for i in range(0, len(shown), size)]
        out[kind] = sum(_measured(trainer, batch)[1]["rewards/margins"] * len(batch) for batch in batches) / len(shown)
    print("rewards/margins with the true image {true:.3f}, a blank one {blank:.3f}, another row's {swapped:.3f}".format(**out))
    return out


def _measured(trainer: Any, rows: list[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """The sigmoid loss and the metrics of some rows, without a step. What would be weighted or added is left out."""
    import torch

    inputs = trainer._prepare_inputs(trainer.data_collator([dict(row) for row in rows]))
    plain = {"loss_types": ["sigmoid"], "loss_weights": [1.0], "use_weighting": False, "aux_loss_enabled": False}
    kept, training = {name: getattr(trainer, name) for name in plain}, trainer.model.training
    vars(trainer).update(plain)
    trainer.model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        loss = float(trainer.compute_loss(trainer.model, inputs))
    seen = {k: values[-1] for k, values in trainer._metrics["eval"].items()}
    trainer._metrics["eval"].clear()
    vars(trainer).update(kept)
    trainer.model.train(training)
    return loss, seen


WINDOW = 5
"""Logs that a judgement of the run's health is averaged over: one batch says little."""
FALL = 2.0
"""Nats that chosen may lose: then it is exp(2), seven times, less likely than it was."""


def watch(beta: float) -> Any:
    """A callback that says once, while there is time to stop, what goes wrong in a run and how to mend it.

    `rewards/chosen` is beta times the log-probability that chosen has gained over the reference on the very same rows, so it
    shows falling `logps/chosen` without the noise of which rows were in the batch.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = [e for e in state.log_history if e.keys() >= {"loss", "rewards/chosen"}]  # not evaluations, not the closing entry
            for warning in unhealthy(logs, beta):
                if warning not in self.warnings:
                    self.warnings.append(warning)
                    print(f"Warning: {warning}")

    return Watch()


def unhealthy(logs: list[dict[str, Any]], beta: float) -> list[str]:
    """What the last `WINDOW` logs of a run show to be wrong, each with its mend; nothing before there are so many."""
    if len(logs) < WINDOW:
        return []
    first, last = (
        {k: sum(float(e[k]) for e in part) / WINDOW for k in ("loss", "rewards/chosen", "rewards/accuracies")}
        for part in (logs[:WINDOW], logs[-WINDOW:])
    )
    found = {
        "logps/chosen falls: chosen answers became less likely than under the reference. "
        "Lower dpo.learning_rate, raise the weight of the `sft` loss (dpo.loss_weights) or dpo.beta": last["rewards/chosen"] < -FALL * beta,
        "the loss rises: lower dpo.learning_rate": last["loss"] > 1.1 * first["loss"],
        "rewards/accuracies stay below one half: the pairs are not learnt. Raise dpo.learning_rate or look at the pairs": (
            len(logs) >= 4 * WINDOW and last["rewards/accuracies"] < 0.5
        ),
    }
    return [warning for warning, is_so in found.items() if is_so]

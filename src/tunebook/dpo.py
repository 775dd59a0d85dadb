"""`tunebook dpo`: direct preference optimisation (Rafailov et al. 2023) of the SFT adapter on checked pairs.

    uv run tunebook dpo --recipe smollm2-math --set dpo.beta=0.2

Twin of `sft.py`: load the recipe, the rows and the model, audit, train, save, record. The reference is the SFT model:
TRL keeps a frozen copy of the adapter it starts from under the name `ref`.
"""

from __future__ import annotations

import math
import shutil
from typing import Any

from tunebook import models, train
from tunebook.data.prepare import read_parquet
from tunebook.pairs import pairs_stage
from tunebook.recipe import Recipe, UserError
from tunebook.run import Stage, finished_key

COLUMNS = ["prompt", "chosen", "rejected"]


def dpo(recipe: Recipe, force: bool = False, resume: bool = True) -> dict[str, Any]:
    """Train the adapter in `dpo/adapter` of the run folder, unless it lies there already; returns the stage's record.

    Raises UserError when pairs or the SFT adapter are missing, or when policy and reference differ before the first step.
    """
    print(recipe.describe())
    stage = dpo_stage(recipe)
    if stage.skip(force):
        return stage.result
    if not pairs_stage(recipe).done:
        raise UserError(f"the pairs in {recipe.run_dir / 'pairs'} are of other settings or another SFT model: run `tunebook pairs` again")
    models.backend()
    with stage.open(resume and not force) as folder:
        model, tokenizer = models.load(recipe)
        model = models.restore_lora(models.add_lora(model, recipe), recipe.run_dir / "sft" / "adapter")
        from trl import DPOConfig, DPOTrainer

        args, callbacks = train.arguments(DPOConfig, recipe, "dpo", folder)
        trainer = DPOTrainer(
            model=model,
            ref_model=None,
            args=args,
            processing_class=tokenizer,
            train_dataset=_rows(recipe, "train"),
            eval_dataset=train.eval_rows(args, _rows(recipe, "val")),
            callbacks=callbacks,
        )
        audit = audit_step_0(trainer)
        for checkpoint in (folder / "checkpoints").glob("checkpoint-*/ref"):
            # With a `ref` folder beside it, transformers' resume would leave the trained adapter at its start.
            shutil.rmtree(checkpoint)
        metrics = train.run(trainer, folder, resume)
        stage.record = {"audit": audit, "metrics": metrics, "rows": {"train": len(trainer.train_dataset)}}
        models.save_adapter(model, tokenizer, folder / "adapter")
    return stage.result


def dpo_stage(recipe: Recipe) -> Stage:
    """The stage that `dpo` fills. Raises UserError when pairs or the SFT adapter are missing."""
    settings = {"model": recipe.model.model_dump(mode="json"), "lora": recipe.lora, "dpo": recipe.dpo, "seed": recipe.seed}
    return Stage(recipe, "dpo", settings, {"pairs": finished_key(recipe, "pairs"), "sft": finished_key(recipe, "sft")})


def audit_step_0(trainer: Any) -> dict[str, float]:
    """Before the first step policy and reference are the same model: the sigmoid loss is ln 2 and the margin 0.

    Raises UserError when they are not; training would start from a wrong reference.
    """
    import torch

    rows = [trainer.train_dataset[i] for i in range(min(train.AUDITED, len(trainer.train_dataset)))]
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    kept = trainer.loss_types, trainer.loss_weights, trainer.model.training
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    trainer.model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        loss = float(trainer.compute_loss(trainer.model, inputs))
    seen = {k: values[-1] for k, values in trainer._metrics["eval"].items()}
    trainer._metrics["eval"].clear()
    trainer.loss_types, trainer.loss_weights, training = kept
    trainer.model.train(training)
    audit = {"loss": loss, "margin": seen["rewards/margins"], "reward_chosen": seen["rewards/chosen"], "reward_rejected": seen["rewards/rejected"]}
    print(f"Step-0 audit: loss {loss:.4f} (ln 2 = {math.log(2):.4f}), margin {audit['margin']:.4f}, logps/chosen {seen['logps/chosen']:.1f}")
    if not abs(loss - math.log(2)) <= 0.01 or max(abs(audit["reward_chosen"]), abs(audit["reward_rejected"])) > 0.01:
        raise UserError(
            f"step-0 audit: loss {loss:.4f} instead of ln 2, rewards {audit['reward_chosen']:.3f} and {audit['reward_rejected']:.3f} instead of 0: "
            "the reference is not the model that training starts from (wrong adapter, dropout, or other weights)"
        )
    return audit


def _rows(recipe: Recipe, split: str) -> Any:
    return read_parquet(recipe.run_dir / "pairs" / f"{split}.parquet").select_columns(COLUMNS)

"""The parts of DPO's loss, each logged by its name: `losses/sigmoid`, `losses/sft`."""

from __future__ import annotations

from typing import Any


class NotedWeight:
    """A weight of a part of the loss that logs what it is multiplied with.

    TRL 1.15 logs the sum alone (`dpo_trainer.py`: `loss += per_sequence_loss.mean() * loss_weight`), and
    the parts cannot be told from it. To be removed when TRL logs them.
    """

    def __init__(self, trainer: Any, name: str, weight: float) -> None:
        self.trainer = trainer
        self.name = f"losses/{name}"
        self.weight = weight

    def __rmul__(self, part: Any) -> Any:
        mode = "train" if self.trainer.model.training else "eval"
        mean = self.trainer.accelerator.gather(part.detach()).mean().item()
        self.trainer._metrics[mode][self.name].append(mean)
        return part * self.weight


def log_loss_parts(trainer: Any) -> None:
    """Let a DPO trainer log each part of its loss, before its weight, beside the sum."""
    weights = zip(trainer.loss_types, trainer.loss_weights, strict=True)
    trainer.loss_weights = [NotedWeight(trainer, name, weight) for name, weight in weights]

"""The tables of docs/gpus.md: what models take of a GPU's memory, and how long training takes. Estimates.

    uv run python scripts/cards.py

Memory is the formula that a stage prints before it starts (`training/memory.py`), with the published shapes
of the models. Time is the floating-point operations of a token over what a card does in a second. Nothing of
it was measured on a card.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from tunebook.training.memory import Plan

PAGE = Path(__file__).parents[1] / "docs" / "gpus.md"
MARKS = ("<!-- {} -->\n", "<!-- /{} -->")

RANK, LENGTH = 16, 1024
CONTEXT = 1.5 * 2**30
"""Bytes for CUDA's context, workspaces, and the layers that Unsloth's 4-bit files keep in 16 bit: a guess."""

FLOPS = 8
"""Operations for a token and parameter: forward, forward again (checkpointing), backward through frozen
weights, and a third on top for dequantising and LoRA."""

CALL = 0.3
"""Seconds of a batch that the processor needs, however fast the card. Unsloth measured 0.25 to 0.4 for 4
billion parameters (`unsloth/utils/padding_choice.py`)."""


@dataclass(frozen=True)
class Model:
    """The shape of a model, as its config.json has it."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    tied: bool
    head: int = 128
    vocabulary: int = 151_936

    def plan(self, rows: int, sides: int) -> Plan:
        """In 4 bit, with LoRA on all linear layers, checkpointing and an 8-bit optimiser."""
        groups = 8
        wide, narrow = self.heads * self.head, groups * self.head
        attention = [(self.hidden, wide), (self.hidden, narrow), (self.hidden, narrow), (wide, self.hidden)]
        shapes = [*attention, (self.hidden, self.inner), (self.hidden, self.inner), (self.inner, self.hidden)]
        linear = trainable = 0
        for rows_, columns in shapes:
            linear += self.layers * rows_ * columns
            trainable += self.layers * RANK * (rows_ + columns)
        config = SimpleNamespace(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_attention_heads=self.heads,
            head_dim=self.head,
            vocab_size=self.vocabulary,
        )
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return Plan(
            config=config,
            linear=linear,
            other=embeddings,
            trainable=trainable,
            rows=rows,
            length=LENGTH,
            sides=sides,
            four_bit=True,
            checkpointing=True,
            optimizer=2,
        )

    def memory(self, rows: int, sides: int) -> str:
        """GB on a card."""
        return f"{(self.plan(rows, sides).total + CONTEXT) / 2**30:.0f}"


QWEN3_4B = Model("Qwen3-4B", 36, 2560, 9728, 32, True)
MODELS = (
    Model("Llama-3.2-1B", 16, 2048, 8192, 32, True, head=64, vocabulary=128_256),
    Model("Llama-3.2-3B", 28, 3072, 8192, 24, True, vocabulary=128_256),
    QWEN3_4B,
    Model("Qwen3-8B", 36, 4096, 12288, 32, False),
    Model("Qwen3-14B", 40, 5120, 17408, 40, False),
    Model("Qwen3-32B", 64, 5120, 25600, 64, False),
)

# Teraflops of dense 16-bit products by the data sheets, and the share of them that training reaches: a guess.
CARDS = (
    ("RTX 3060, 12 GB", 25, 0.5),
    ("T4, 16 GB (Colab, Kaggle)", 65, 0.4),
    ("L4, 24 GB", 121, 0.5),
    ("RTX 4090, 24 GB", 165, 0.5),
    ("L40S, 48 GB", 362, 0.45),
    ("A100, 80 GB", 312, 0.45),
    ("H100, 80 GB", 990, 0.4),
)


def memory_table() -> str:
    """GB that SFT and DPO of each model take at rows of `LENGTH` tokens."""
    lines = [
        "| model, 4 bit | SFT, 4 rows | SFT, 1 row | DPO, 2 pairs | DPO, 1 pair |",
        "|---|---|---|---|---|",
    ]
    for model in MODELS:
        cells = [model.memory(4, 1), model.memory(1, 1), model.memory(2, 2), model.memory(1, 2)]
        lines.append(f"| {model.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def seconds(model: Model, peak: float, share: float, tokens: int, batches: int) -> float:
    """How long so many tokens in so many batches take: the card or the processor, whichever is slower."""
    linear = model.plan(1, 1).linear
    card = FLOPS * linear * tokens / (peak * share * 1e12)
    return max(card, CALL * batches)


def time_table() -> str:
    """For Qwen3-4B and rows of 300 tokens: three epochs of 1,000, 1,000 pairs, one epoch of 50,000."""
    model = QWEN3_4B
    lines = [
        "| card | SFT, 1,000 rows, 3 epochs | DPO, 1,000 pairs, 1 epoch | SFT, 50,000 rows, 1 epoch |",
        "|---|---|---|---|",
    ]
    for name, peak, share in CARDS:
        small = seconds(model, peak, share, tokens=900_000, batches=750)
        # The reference is a forward pass more: 10 operations in place of 8.
        pairs = seconds(model, peak, share, tokens=750_000, batches=500)
        large = seconds(model, peak, share, tokens=15_000_000, batches=12_500)
        lines.append(f"| {name} | {_said(small)} | {_said(pairs)} | {_said(large)} |")
    return "\n".join(lines) + "\n"


# Seconds of one token of a whole batch of answers, on any card: some 2,000 kernels that Python starts.
TOKEN = 0.065


@dataclass(frozen=True)
class Chain:
    """What a shipped recipe does, as it stands in `configs/`; rows of 200 tokens, pairs of 900."""

    recipe: str
    card: str
    rows: int
    pairs: int
    items: int
    batch: int  # of the evaluation

    def hours(self, peak: float, share: float) -> tuple[float, float, float]:
        """Of SFT, DPO and the evaluation of three models with answers of up to 400 tokens."""
        model = QWEN3_4B
        # `auto` batches keep the card busy: 8 rows, or 4 pairs.
        trained = seconds(model, peak, share, tokens=200 * self.rows, batches=self.rows // 8)
        preferred = seconds(model, peak, share, tokens=900 * self.pairs * 10 // 8, batches=self.pairs // 4)
        evaluated = 3 * math.ceil(self.items / self.batch) * 400 * TOKEN
        return trained / 3600, preferred / 3600, evaluated / 3600


CHAINS = (
    Chain("qwen3-4b-16gb", "T4, 16 GB (Colab, Kaggle)", 8_000, 4_000, 200, 16),
    Chain("qwen3-4b-instruct", "L4, 24 GB", 51_000, 60_000, 400, 32),
    Chain("qwen3-4b-instruct", "RTX 4090, 24 GB", 51_000, 60_000, 400, 32),
    Chain("qwen3-4b-instruct", "L40S, 48 GB", 51_000, 60_000, 400, 32),
    Chain("qwen3-4b-80gb", "A100, 80 GB", 51_000, 60_000, 400, 256),
    Chain("qwen3-4b-80gb", "H100, 80 GB", 51_000, 60_000, 400, 256),
)


# What an hour of a card may cost, as an example: prices differ between providers and change.
PRICES = {
    "T4, 16 GB (Colab, Kaggle)": 0.35,
    "L4, 24 GB": 0.80,
    "RTX 4090, 24 GB": 0.60,
    "L40S, 48 GB": 1.20,
    "A100, 80 GB": 1.80,
    "H100, 80 GB": 3.00,
}

FOUR = 4 * 0.9
"""How much faster four cards in one machine train: a tenth less for the exchange of gradients, a guess."""


def chain_table() -> str:
    """Hours and cost of a shipped recipe's stages on a card, and the hours on four of them."""
    cards = {name: (peak, share) for name, peak, share in CARDS}
    lines = [
        "| recipe | card | SFT | DPO | evaluation | hours in all | an hour, say | cost | on 4 cards, hours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for chain in CHAINS:
        sft, dpo, evaluation = chain.hours(*cards[chain.card])
        price = PRICES[chain.card]
        total = sft + dpo + evaluation
        # SFT and DPO train on all cards, one of them evaluates.
        on_four = (sft + dpo) / FOUR + evaluation
        cells = [chain.recipe, chain.card, *(_said(3600 * part) for part in (sft, dpo, evaluation))]
        cells += [f"{total:.1f}", f"{price:.2f}", f"{total * price:.2f}", f"{on_four:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _said(seconds: float) -> str:
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def filled(text: str) -> str:
    """The page with its tables made anew."""
    for name, table in (("memory", memory_table()), ("time", time_table()), ("chain", chain_table())):
        start, end = (mark.format(name) for mark in MARKS)
        before, _, rest = text.partition(start)
        text = before + start + table + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

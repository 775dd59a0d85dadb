"""What a training stage will take of memory, disk and time, told before the model is loaded.

The model is built without storage: its parameters are counted, not guessed, and one forward pass on fake tensors tells which
tensors autograd would keep for the backward pass (as `torch.autograd.graph.saved_tensors_hooks` sees them).
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tunebook.models import backend, builtin
from tunebook.models.cpu import attention
from tunebook.models.tokenizer import image_counter, load_tokenizer
from tunebook.recipe.errors import first_line
from tunebook.recipe.sections import Recipe
from tunebook.runs.machine import free_ram, rank, world_size

LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""What Unsloth adapts where the recipe does not say."""


NF4_BITS = 4.13
"""A parameter in NF4 with its doubly quantised scales (Dettmers et al. 2023, arXiv 2305.14314)."""


CHUNK = 16 * 2**20
"""Logits that the loss has before it at a time, on either backend: the whole of them is never there."""


LOGIT_COPIES = 3
"""Logits in float32, their softmax, and the part of the gradient that is made of it."""


GAPS = {"sft": 0.35, "dpo": 0.75}
"""What glibc's heap holds in gaps on a CPU, as a share of the activations: found with eight rows a batch (benchmarks/memory.py), where
what is in use is as counted and the resident memory so much more. DPO's second pass, for the reference, leaves more of them."""


FULL = 0.95
"""Share of the free memory from which on it is likely not to be enough."""


@dataclass(frozen=True)
class Plan:
    """What the need of memory follows from. Bytes where it says nothing else."""

    linear: int
    """Parameters of linear layers, which 4-bit loading makes small."""
    other: int
    """Parameters of embeddings, norms and the head."""
    trainable: int
    """Parameters of the adapter; float32."""
    width: int
    """Bytes of a base parameter that is not quantised."""
    kept: int
    """What autograd keeps for one batch, without checkpointing."""
    layers: int
    entering: int
    """What enters one layer, for one batch: what checkpointing keeps of it."""
    logits: int
    """Tokens of a batch times the vocabulary."""
    four_bit: bool = False
    checkpointing: bool = False
    optimizer: int = 8
    """Bytes of optimiser state for one trainable parameter."""
    copies: int = 1
    """Adapters in memory: 2 in DPO, which keeps the one that it starts from as the reference."""
    gaps: float = 0.0
    """Share of the activations that the allocator takes on top of them."""

    def parts(self) -> dict[str, int]:
        """Bytes by what they are for."""
        base = (
            self.linear * NF4_BITS / 8 + self.other * self.width
            if self.four_bit
            else (self.linear + self.other) * self.width
        )
        activations = (
            self.layers * self.entering + self.kept // max(1, self.layers)
            if self.checkpointing
            else self.kept
        )
        return {
            "base model": int(base),
            "adapter": 4 * self.trainable * self.copies,
            "gradients": 4 * self.trainable,
            "optimiser": self.optimizer * self.trainable,
            "activations": activations,
            "logits": LOGIT_COPIES * 4 * min(self.logits, CHUNK),
            "gaps in the heap": int(self.gaps * activations),
        }

    @property
    def total(self) -> int:
        """Bytes, all together."""
        return sum(self.parts().values())


def preflight(recipe: Recipe, args: Any, rows: Any, section: str) -> dict[str, Any]:
    """Print what a stage will take against what there is, and the cheapest mend if that is too little; returns it for the record.

    `rows` are the stage's training rows, as prepared. Takes a second or two and never fails: what cannot be estimated is said in
    one line. Of several processes the first one speaks.
    """
    if rank():
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _preflight(
                recipe, args, rows["tokens"] if section == "sft" else pair_lengths(recipe, rows), section
            )
    except Exception as error:
        print(f"No estimate of the memory: {type(error).__name__}: {first_line(error)[:200]}")
        return {}


def _preflight(recipe: Recipe, args: Any, lengths: Sequence[int], section: str) -> dict[str, Any]:
    longest = min(max(lengths), args.max_length or max(lengths))
    plan = make_plan(recipe, args, longest, section)
    free, where = available()
    each = plan.total * (int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if where == "RAM" else 1)
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    steps = (
        args.max_steps
        if args.max_steps > 0
        else math.ceil(math.ceil(len(lengths) / rows) * args.num_train_epochs)
    )
    tokens = int(sum(lengths) * (2 if section == "dpo" else 1) * steps * rows / max(1, len(lengths)))
    disk, space = (
        (4 * plan.copies + plan.optimizer) * plan.trainable * checkpoints(args, steps),
        shutil.disk_usage(_existing(recipe.run_dir)).free,
    )
    table = Table("memory", "GB", title=f"what {section} will take")
    for name, size in plan.parts().items():
        table.add_row(name, f"{size / 2**30:.2f}")
    processes = f" x {each // plan.total} processes" if each > plan.total else ""
    table.add_row(f"all{processes}, of {free / 2**30:.1f} GB free ({where})", f"{each / 2**30:.2f}")
    table.caption = f"{steps} steps of {rows} rows, about {tokens:,} tokens, longest row {longest}; checkpoints {disk / 2**30:.2f} GB on disk"
    Console().print(table)
    if each > FULL * free:
        print(
            f"Warning: this will likely not fit. {mend(plan, int(plan.total * FULL * free / each), args, section)}"
        )
    if disk > space:
        print(f"Warning: the disk has {space / 2**30:.1f} GB left: set {section}.save_total_limit=1")
    return {"parts": plan.parts(), "total": plan.total, "free": free, "where": where, "longest": longest}


def make_plan(recipe: Recipe, args: Any, longest: int, section: str) -> Plan:
    """Count a recipe's parameters and the tensors that a forward pass of its longest batch would keep; nothing is loaded."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig
    from unsloth import is_bfloat16_supported

    gpu, pairs = backend.backend() != "cpu", section == "dpo"
    dtype = getattr(
        torch,
        recipe.model.dtype or ("bfloat16" if is_bfloat16_supported() else "float16" if gpu else "float32"),
    )
    config = AutoConfig.from_pretrained(builtin.resolve(recipe.model.base), revision=recipe.model.revision)
    how = recipe.model.attn_implementation or "sdpa"
    how = "eager" if how == attention.NAME else how
    lora = {k: v for k, v in recipe.lora.items() if k in LoraConfig.__dataclass_fields__}
    with torch.device("meta"):
        base = getattr(transformers, config.architectures[0])._from_config(
            config, dtype=dtype, attn_implementation=how
        )
        head = base.get_output_embeddings()
        linear = sum(
            m.weight.numel() for m in base.modules() if isinstance(m, torch.nn.Linear) and m is not head
        )
        every = sum(p.numel() for p in base.parameters())
        _forget(base)
        model = get_peft_model(base, LoraConfig(**({"target_modules": LORA_MODULES} | lora)))
    rows = args.per_device_train_batch_size * (2 if pairs else 1)
    text = config.get_text_config()
    return Plan(
        linear=linear,
        other=every - linear,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        width=dtype.itemsize,
        kept=_kept(
            model, rows, longest, torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        ),
        layers=text.num_hidden_layers,
        entering=rows * longest * text.hidden_size * dtype.itemsize,
        logits=rows * longest * text.vocab_size,
        four_bit=recipe.model.load_in_4bit,
        checkpointing=bool(args.gradient_checkpointing or recipe.lora.get("use_gradient_checkpointing")),
        optimizer=2 if "8bit" in str(args.optim) else 8,
        copies=2 if pairs else 1,
        gaps=0.0 if gpu else GAPS[section],
    )


def _forget(model: Any) -> None:
    """Have transformers look this model's classes up anew when they are asked for next.

    Unsloth rewrites classes in transformers' modeling files when it loads the first model of a kind on a GPU; transformers hands out
    a class as it was when first asked for. Gemma 3n, made of both, trains on uninitialised scales (its loss is NaN).
    """
    import transformers

    for kind in {type(part) for part in model.modules() if isinstance(part, transformers.PreTrainedModel)}:
        if kind.__module__.startswith("transformers."):
            for place in (transformers, sys.modules[kind.__module__.rpartition(".")[0]]):
                vars(place).pop(kind.__name__, None)


def _kept(model: Any, rows: int, length: int, autocast: Any) -> int:
    """Bytes that autograd keeps of a forward pass, up to the head. `model` is on the meta device and is given fake tensors here."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with FakeTensorMode(), _unread():
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = torch.nn.Parameter(
                        torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad
                    )
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        ids = torch.zeros((rows, length), dtype=torch.long)
        model.train()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
            torch.autocast("cpu", autocast, enabled=autocast is not None),
        ):
            model.get_base_model().get_decoder()(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
            )
    return sum(int(size) for key, (size, _) in kept.items() if key not in own)


@contextlib.contextmanager
def _unread() -> Iterator[None]:
    """Nothing is compiled, and nothing looks into tensors, as Unsloth's shortcut for masks does on a GPU: fake ones have no values."""
    import torch

    shortcut = "UNSLOTH_SKIP_CAUSAL_MASK"
    before = os.environ.get(shortcut, "1")  # Unsloth's own default
    os.environ[shortcut] = "0"
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        os.environ[shortcut] = before


def available() -> tuple[int, str]:
    """Free bytes of the GPU, or of the machine within the limit of its control group."""
    import torch

    return (torch.cuda.mem_get_info()[0], "GPU") if backend.backend() == "cuda" else (free_ram(), "RAM")


def mend(plan: Plan, free: int, args: Any, section: str) -> str:
    """The setting that makes a plan fit and costs least: fewer rows at a time, then checkpointing, both, 4 bit, shorter rows."""
    rows, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    smaller = [n for n in range(rows - 1, 0, -1) if rows % n == 0]
    ways = [
        (
            {
                "kept": plan.kept * n // rows,
                "entering": plan.entering * n // rows,
                "logits": plan.logits * n // rows,
            },
            n,
        )
        for n in smaller
    ]
    lora, four = "lora.use_gradient_checkpointing=true", "model.load_in_4bit=true"
    tries: list[tuple[dict[str, Any], list[str], int]] = [(change, [], n) for change, n in ways] + [
        ({"checkpointing": True}, [lora], rows)
    ]
    last = ways[-1][0] if ways else {}
    tries += [
        (last | {"checkpointing": True}, [lora], 1),
        (last | {"checkpointing": True, "four_bit": True}, [lora, four], 1),
    ]
    for change, settings, n in tries:
        if replace(plan, **change).total <= free:
            batch = (
                [
                    f"{section}.per_device_train_batch_size={n}",
                    f"{section}.gradient_accumulation_steps={steps * rows // n}",
                ]
                if n < rows
                else []
            )
            return "It would with " + " ".join(f"--set {s}" for s in [*batch, *settings])
    return f"Make model.max_seq_length smaller, set {lora} and {four}, or take a smaller model"


def checkpoints(args: Any, steps: int) -> int:
    """How many checkpoints lie on disk at a time."""
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    every: float | None = {
        "steps": args.save_steps,
        "epoch": math.ceil(steps / max(1, args.num_train_epochs)),
    }.get(strategy)
    if not every:
        return 0
    written = math.ceil(1 / every if every < 1 else steps / every)  # below 1 it is a share of the steps
    return min(written, args.save_total_limit or written)


def pair_lengths(recipe: Recipe, rows: Any, exact: int = 8) -> list[int]:
    """Tokens of each pair's longer side with its prompt and images: text is counted for the longest ones, by its characters for the rest."""
    tok = load_tokenizer(recipe.model)
    sides = [
        max((row["prompt"] + row[side] for side in ("chosen", "rejected")), key=_characters) for row in rows
    ]
    longest = sorted(range(len(sides)), key=lambda i: _characters(sides[i]), reverse=True)[:exact]
    counted = {
        i: len(tok.apply_chat_template(sides[i], tokenize=True, return_dict=True)["input_ids"])
        for i in longest
    }
    rate = sum(counted.values()) / max(1, sum(_characters(sides[i]) for i in longest))
    lengths = [counted.get(i, int(rate * _characters(side))) for i, side in enumerate(sides)]
    if "images" not in rows.column_names:
        return lengths
    counter = image_counter(recipe.model)
    return [
        length + counter.added(row) + len(row) for length, row in zip(lengths, rows["images"], strict=True)
    ]


def _characters(messages: list[dict[str, str]]) -> int:
    return sum(len(m["content"]) for m in messages)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)

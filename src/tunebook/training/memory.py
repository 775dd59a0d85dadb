"""What a training stage will take of memory and disk, printed before the model is loaded.

Weights and adapter are counted from the headers of the model's safetensors files, what autograd keeps of a
batch by one formula. No model is built: transformers' classes must stay untouched until Unsloth has patched
them (a Gemma 3n of both trains on uninitialised scales). How good it is: `benchmarks/memory.py`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunebook.models import backend, builtin
from tunebook.models.cpu import attention
from tunebook.models.start import with_shape_of_start
from tunebook.models.tokenizer import image_counter, load_tokenizer
from tunebook.recipe.effects import AUTO, ROWS
from tunebook.recipe.errors import first_line
from tunebook.recipe.sections import ModelConfig, Recipe
from tunebook.runs.machine import free_ram, rank, same_for_all, world_size
from tunebook.runs.tables import Table

LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # as Unsloth

NF4_BITS = 4.13  # with the doubly quantised scales (Dettmers et al. 2023, arXiv 2305.14314)

# The loss computes its logits in chunks, on either backend. Of a chunk there are the logits in float32, their
# softmax, and the part of the gradient that is made of it.
CHUNK, LOGIT_COPIES = 16 * 2**20, 3

# Gaps in glibc's heap on a CPU, as a share of the activations, found with eight rows a batch. DPO's second
# pass, for the reference, leaves more of them.
GAPS = {"sft": 0.35, "dpo": 0.75}

ROOM = 0.85  # share of the free memory that `auto` fills, as the plan is an estimate
FULL = 0.95  # share of the free memory from which on it is likely not to be enough

Tensor = tuple[str, str, list[int]]  # name, type (`BF16`, ...), shape


@dataclass(frozen=True)
class Plan:
    """What the need of memory follows from."""

    config: Any  # the language model's, of transformers: layers, widths, heads, vocabulary
    linear: int  # parameters of linear layers, which 4-bit loading makes small
    other: int  # parameters of embeddings, norms and the head
    trainable: int  # parameters that are trained; float32
    rows: int  # of a batch; in DPO, pairs
    length: int  # tokens of the longest row
    weight_bytes: int = 2  # of a parameter that is not quantised
    value_bytes: int = 2  # of a number in the forward pass
    sides: int = 1  # 2 in DPO: chosen and rejected; and adapters, the trained one and the reference
    scores: bool = False  # whether attention writes out its scores (`eager`, `grouped`)
    four_bit: bool = False
    checkpointing: bool = False
    optimizer: int = 8  # bytes of its state for a trained parameter
    gaps: float = 0.0  # share of the activations that the allocator takes on top of them

    def layer(self) -> int:
        """Bytes that autograd keeps of one layer for one token.

        Read off a llama layer with LoRA on its seven projections: norms and the inputs of projections take
        20 bytes a hidden value, in 16 as in 32 bit; the MLP keeps four tensors of its inner width, attention
        four of its heads' width.
        """
        config = self.config
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        inner = config.intermediate_size
        if isinstance(inner, list):  # Gemma 3n has one for each layer
            inner = max(inner)
        kept = 20 * config.hidden_size + 4 * self.value_bytes * (inner + heads * head)
        if self.scores:  # the softmax in float32, and in 16 bit a copy that meets the values
            score_bytes = {4: 4, 2: 6}[self.value_bytes]
            kept += score_bytes * heads * self.length
        return int(kept)

    def parts(self) -> dict[str, int]:
        """Bytes by what they are for."""
        linear_bytes = NF4_BITS / 8 if self.four_bit else self.weight_bytes
        layers = self.config.num_hidden_layers
        tokens = self.rows * self.sides * self.length
        activations = tokens * layers * self.layer()
        if self.checkpointing:  # what enters each layer, and the one layer that is computed again
            activations = tokens * (layers * self.config.hidden_size * self.value_bytes + self.layer())
        return {
            "base model": int(self.linear * linear_bytes + self.other * self.weight_bytes),
            "adapter": 4 * self.trainable * self.sides,
            "gradients": 4 * self.trainable,
            "optimiser": self.optimizer * self.trainable,
            "activations": activations,
            "logits": LOGIT_COPIES * 4 * min(tokens * self.config.vocab_size, CHUNK),
            "allocator overhead": int(self.gaps * activations),
        }

    @property
    def total(self) -> int:
        """Bytes, all together."""
        return sum(self.parts().values())


def choose_batch(recipe: Recipe, args: Any, rows: Any, section: str) -> None:
    """Where the recipe says `auto`, have as many rows at a time as fit; a step keeps all of its rows.

    The largest power of two that divides the accumulation and whose plan leaves some memory free. One row
    where nothing can be estimated. Several processes take what the first one can.
    """
    if getattr(recipe, section).get(ROWS) != AUTO:
        return
    steps = args.gradient_accumulation_steps
    batch = 1
    try:
        plan = make_plan(recipe, args, _longest(args, _lengths(recipe, rows, section)), section)
        free, _ = available()
        while steps % (2 * batch) == 0 and replace(plan, rows=2 * batch).total <= ROOM * free:
            batch *= 2
    except Exception as error:
        print(f"No estimate of the memory: {type(error).__name__}: {first_line(error)[:200]}")
    batch = same_for_all(batch)
    args.per_device_train_batch_size = batch
    args.gradient_accumulation_steps = steps // batch
    print(f"{section}.{ROWS} auto: {batch} at a time, {steps // batch} times a step")


def _lengths(recipe: Recipe, rows: Any, section: str) -> Any:
    """Tokens of each row, or of the longer side of each pair."""
    return rows["tokens"] if section == "sft" else pair_lengths(recipe, rows)


def _longest(args: Any, lengths: Any) -> int:
    """Tokens of the longest row as the trainer will see it."""
    return int(min(max(lengths), args.max_length or max(lengths)))


def preflight(recipe: Recipe, args: Any, rows: Any, section: str) -> dict[str, Any]:
    """Print what a stage will take against what there is; returns it for the record.

    `rows` are the stage's training rows, as prepared. Never fails: what cannot be estimated is one line. Of
    several processes the first one prints.
    """
    if rank():
        return {}
    try:
        lengths = _lengths(recipe, rows, section)
        plan = make_plan(recipe, args, _longest(args, lengths), section)
        free, place = available()
        table = Table("memory", "GB", title=f"what {section} will take")
        for name, size in plan.parts().items():
            table.add_row(name, f"{size / 2**30:.2f}")
        table.add_row(f"all, of {free / 2**30:.1f} GB free ({place})", f"{plan.total / 2**30:.2f}")
        table.show()
        _print_size(plan, recipe, args, lengths, section)
        if plan.total > FULL * free:
            print(f"Warning: this will likely not fit. {mend(plan, int(FULL * free), args, section)}")
    except Exception as error:
        print(f"No estimate of the memory: {type(error).__name__}: {first_line(error)[:200]}")
        return {}
    record = {"parts": plan.parts(), "total": plan.total, "free": free}
    return record | {"where": place, "longest": plan.length}


def _print_size(plan: Plan, recipe: Recipe, args: Any, lengths: Sequence[int], section: str) -> None:
    """Print how much is trained on, and what the checkpoints take of the disk."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(math.ceil(len(lengths) / rows) * args.num_train_epochs)
    tokens = int(sum(lengths) / len(lengths) * plan.sides * rows * steps)
    disk = checkpoints(args, steps) * plan.trainable * (4 * plan.sides + plan.optimizer)
    print(
        f"{steps} steps of {rows} rows, about {tokens:,} tokens, longest row {plan.length}; "
        f"checkpoints {disk / 2**30:.2f} GB on disk"
    )
    folder = next(path for path in (recipe.run_dir, *recipe.run_dir.parents) if path.exists())
    space = shutil.disk_usage(folder).free
    if disk > space:
        print(f"Warning: the disk has {space / 2**30:.1f} GB left: set {section}.save_total_limit=1")


def available() -> tuple[int, str]:
    """Free bytes of the GPU, or of the machine within the limit of its control group."""
    if backend.backend() != "cuda":
        return free_ram(), "RAM"
    import torch

    return torch.cuda.mem_get_info()[0], "GPU"


def make_plan(recipe: Recipe, args: Any, longest: int, section: str) -> Plan:
    """What a recipe's stage will need, from the files of its model and the trainer's arguments."""
    gpu = backend.backend() != "cpu"
    from transformers import AutoConfig
    from unsloth import is_bfloat16_supported

    if section == "dpo":
        recipe = with_shape_of_start(recipe)
    model = recipe.model
    config = AutoConfig.from_pretrained(builtin.resolve(model.local_base), revision=model.revision)
    linear, other, trainable = count_parameters(headers(model), recipe.lora)
    weight_bytes = value_bytes = 2
    if model.dtype == "float32" or not (model.dtype or gpu or is_bfloat16_supported()):
        weight_bytes = 4
        if not (args.bf16 or args.fp16):  # else the forward pass is in 16 bit all the same
            value_bytes = 4
    return Plan(
        config=config.get_text_config(),
        linear=linear,
        other=other,
        trainable=trainable,
        rows=args.per_device_train_batch_size,
        length=longest,
        weight_bytes=weight_bytes,
        value_bytes=value_bytes,
        sides=2 if section == "dpo" else 1,
        scores=model.attn_implementation in ("eager", attention.NAME),
        four_bit=model.load_in_4bit,
        checkpointing=bool(args.gradient_checkpointing or recipe.lora.get("use_gradient_checkpointing")),
        optimizer=2 if "8bit" in str(args.optim) else 8,
        gaps=0.0 if gpu else GAPS[section],
    )


def count_parameters(tensors: Iterable[Tensor], lora: dict[str, Any]) -> tuple[int, int, int]:
    """Parameters of linear layers, of the rest of the model, and those that are trained."""
    targets = lora.get("target_modules")
    if not isinstance(targets, list):  # `all-linear` or a pattern: about the same
        targets = LORA_MODULES
    linear = other = trainable = 0
    for name, dtype, shape in tensors:
        if dtype == "U8" and len(shape) == 2:
            # In 4 bit already (`...-bnb-4bit`): two parameters a byte, the shape is lost; taken for a square.
            shape = [math.isqrt(2 * math.prod(shape))] * 2
        module = name.removesuffix(".weight").rpartition(".")[2]
        size = math.prod(shape)
        if len(shape) == 2 and "embed" not in module and module != "lm_head":
            linear += size
        else:
            other += size
        if module in targets:
            trainable += lora.get("r", 16) * sum(shape)
        if module in (lora.get("modules_to_save") or ()):
            trainable += size
    return linear, other, trainable


def headers(model: ModelConfig) -> Iterator[Tensor]:
    """Name, type and shape of each tensor in a base model's safetensors files, on disk or on the hub."""
    import huggingface_hub
    from safetensors import safe_open

    base = builtin.resolve(model.local_base)
    if not Path(base).is_dir() and huggingface_hub.is_offline_mode():
        base = huggingface_hub.snapshot_download(base, revision=model.revision, local_files_only=True)
    if Path(base).is_dir():
        for path in sorted(Path(base).glob("model*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no dict
                    tensor = file.get_slice(name)
                    yield name, tensor.get_dtype(), tensor.get_shape()
    else:
        metadata = huggingface_hub.get_safetensors_metadata(base, revision=model.revision)
        for header in metadata.files_metadata.values():
            for name, info in header.tensors.items():
                yield name, info.dtype, info.shape


def mend(plan: Plan, free: int, args: Any, section: str) -> str:
    """The first setting that makes a plan fit: fewer rows at a time, checkpointing, both, 4 bit too."""
    lora, four_bit = "lora.use_gradient_checkpointing=true", "model.load_in_4bit=true"
    checkpointed = replace(plan, checkpointing=True)
    candidates = [replace(plan, rows=rows) for rows in range(plan.rows - 1, 0, -1) if plan.rows % rows == 0]
    candidates += [checkpointed, replace(checkpointed, rows=1), replace(checkpointed, rows=1, four_bit=True)]
    for smaller in candidates:
        if smaller.total > free:
            continue
        settings = []
        if smaller.rows < plan.rows:
            steps = args.gradient_accumulation_steps * plan.rows // smaller.rows
            settings.append(f"{section}.per_device_train_batch_size={smaller.rows}")
            settings.append(f"{section}.gradient_accumulation_steps={steps}")
        if smaller.checkpointing != plan.checkpointing:
            settings.append(lora)
        if smaller.four_bit != plan.four_bit:
            settings.append(four_bit)
        return "It would with " + " ".join(f"--set {setting}" for setting in settings)
    return f"Make model.max_seq_length smaller, set {lora} and {four_bit}, or take a smaller model"


def checkpoints(args: Any, steps: int) -> int:
    """How many checkpoints lie on disk at a time."""
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    written = 0
    if strategy == "epoch":
        written = math.ceil(args.num_train_epochs)
    elif strategy == "steps":
        every = args.save_steps
        if every < 1:  # a share of all steps
            every *= steps
        written = math.ceil(steps / every)
    return min(written, args.save_total_limit or written)


def pair_lengths(recipe: Recipe, rows: Any, exact: int = 8) -> list[int]:
    """Tokens of each pair's longer side with its prompt and images.

    Text is tokenised for the longest pairs alone; the others follow from their characters, or a large set
    would take longer to count than the estimate is worth.
    """
    tokenizer = load_tokenizer(recipe.model)
    texts = []
    for row in rows:
        longer = max(row["chosen"], row["rejected"], key=lambda messages: len(messages[-1]["content"]))
        texts.append(tokenizer.apply_chat_template(row["prompt"] + longer, tokenize=False))
    lengths = [len(text) for text in texts]
    longest = sorted(range(len(texts)), key=lengths.__getitem__, reverse=True)[:exact]
    tokens = {i: len(tokenizer(texts[i], add_special_tokens=False)["input_ids"]) for i in longest}
    rate = sum(tokens.values()) / sum(lengths[i] for i in longest)
    for i, characters in enumerate(lengths):
        lengths[i] = tokens.get(i, int(rate * characters))
    if "images" in rows.column_names:
        counter = image_counter(recipe.model)
        for i, images in enumerate(rows["images"]):
            lengths[i] += counter.added(images) + len(images)
    return lengths

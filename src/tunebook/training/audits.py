"""Before the first step: which tokens carry loss, are the images there, is the policy its own reference."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from rich.console import Console
from rich.text import Text

from tunebook.data.images import ImageSwap, swap_images
from tunebook.data.rows import evenly, images_of
from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import local
from tunebook.models.chat_template import text_tokenizer
from tunebook.models.image_input import TokenCounter
from tunebook.recipe.errors import UserError, first_line, shorten
from tunebook.runs.machine import world_size

AUDITED = 8  # rows that are looked at before the first step; the masks of two of them are shown
ANSWERED = 8  # questions that a trained model is asked, to see whether its answers end
LONGEST = 512  # tokens of the longest answer that it is asked for
MARGINS = 64  # pairs whose margin is taken with other images too
KINDS: tuple[ImageSwap, ...] = ("true", "blank", "swapped")


def audit_masks(trainer: Any, tokenizer: Any) -> dict[str, Any]:
    """Which tokens will be trained on: counted in the first rows, two rows shown, before a step is made.

    Raises UserError when no token or every token of the rows carries loss, and what `audit_images` raises.
    """
    images = sees_images(trainer)
    batches = []
    if images:
        batches.append(trainer.data_collator(_first_rows(trainer)))
    else:
        # Row by row: Unsloth on a GPU pads nothing and makes a batch one long row. Prompts are tokenised.
        for row in _first_rows(trainer):
            row.pop("prompt", None)
            batches.append(trainer.data_collator([row]))
    rows: list[tuple[list[int], list[int], list[bool]]] = []
    for batch in batches:
        parts = (batch["input_ids"], batch["labels"], _no_padding(batch))
        rows += zip(*(part.tolist() for part in parts), strict=True)
    trained = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    tokens = sum(int(_no_padding(batch).sum()) for batch in batches)
    share = trained / max(1, tokens)  # no token at all is no token with loss

    console = Console()
    console.print(
        f"[bold]Mask audit[/bold]: {share:.0%} of the tokens of {len(rows)} rows carry loss "
        "([green]trained[/green], [dim]not trained[/dim])"
    )
    for ids, labels, real in rows[:2]:
        console.print(_coloured(tokenizer, ids, labels, real))
        turns = _trained_turns(tokenizer, ids, labels)
        if len(turns) > 1:
            for number, text in enumerate(turns, 1):
                console.print(Text(f"    trained turn {number}: {shorten(text, 100)}"))
    if share == 0:
        raise UserError(
            "mask audit: no token carries loss; the completions were cut off or are empty "
            "(raise model.max_seq_length, check the data)"
        )
    if share == 1:
        raise UserError(
            "mask audit: every token carries loss, the prompts too; "
            "rows need separate `prompt` and `completion` columns"
        )
    audit: dict[str, Any] = {"rows": len(rows), "trained_share": round(share, 4)}
    if images:
        audit |= audit_images(trainer, tokenizer, batches[0])
    return audit


def audit_end_token(trainer: Any, tokenizer: Any) -> dict[str, Any]:
    """Whether the head can tell the token that ends an answer from tokens that were never trained.

    LoRA leaves the head's rows as they are. Is the end token's row one of the untrained, the model learns
    where an answer ends and spreads the probability over all such tokens (QwenLM/Qwen3#1064). A row counts
    as untrained that is as near to the centre of the unused tokens' rows as they are themselves, the measure
    of Land and Bartolo (2024, arXiv 2405.05417). Cosines would not do: SmolLM2-135M-Instruct's `<|im_end|>`
    is trained and ends answers, with a cosine of 0.98 to nine rows that are all the same.

    Raises UserError for an end token that is not trained and would stay so.
    """
    text = text_tokenizer(tokenizer)
    end = text.eos_token_id
    weight = None
    with contextlib.suppress(NotImplementedError):  # not every model has such a matrix
        weight = getattr(trainer.model.get_output_embeddings(), "weight", None)
    if end is None or weight is None:
        return {}
    # In 4 bit, or shared out among processes, the rows cannot be read.
    if not weight.is_floating_point() or weight.ndim != 2 or weight.shape[0] <= end:
        return {}
    unused = _unused_tokens(text, weight.shape[0])
    if len(unused) < 4 or _trains_row(trainer.model, end):
        return {}
    rows = weight[unused].float()
    # Medians, because some of the tokens may be trained after all.
    center = rows.median(0).values
    spread = float((rows - center).norm(dim=1).median())
    others = range(0, weight.shape[0], max(1, weight.shape[0] // 2000))
    usual = float((weight[list(others)].float() - center).norm(dim=1).median())
    distance = float((weight[end].float() - center).norm())
    audit = {"unused": len(unused), "spread": spread, "usual": usual, "distance": distance}
    # Where unused rows lie as far apart as all others, as in random weights, they are no measure. The
    # second limit is for rows that are the same but for rounding.
    if spread < usual / 2 and distance <= max(1.5 * spread, 0.02 * usual):
        token = text.eos_token
        raise UserError(
            f"answers would not stop: {token} ends them, its row in the model's head is as untrained as "
            f"those of {len(unused)} unused tokens, and LoRA does not train it. Take the model that was "
            f"tuned for chats as model.base, or{_own_end(trainer.model, text)} train the row: "
            f"lora.trainable_token_indices=[{end}]"
        )
    return audit


def _unused_tokens(text: Any, size: int) -> list[int]:
    """Rows of a vocabulary that belong to no token, and control tokens without a part of their own."""
    known = set(text.get_vocab().values())
    unused = [token for token in range(size) if token not in known]
    parts = {text.bos_token_id, text.eos_token_id, text.pad_token_id, text.unk_token_id}
    unused += [token for token in text.added_tokens_decoder if token < size and token not in parts]
    return unused


def _trains_row(model: Any, token: int) -> bool:
    """Whether training changes a token's row of the head, or what it is multiplied with there."""
    chosen: set[int] = set()
    for config in getattr(model, "peft_config", {}).values():
        indices = getattr(config, "trainable_token_indices", None) or []
        for part in indices.values() if isinstance(indices, dict) else [indices]:
            chosen.update(part)
    if chosen:
        return token in chosen
    parameters = [*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()]
    return any(parameter.requires_grad for parameter in parameters)


def _own_end(model: Any, text: Any) -> str:
    """The advice to end answers as the base model ends documents, if that is another token."""
    ends = model.generation_config.eos_token_id
    for token in ends if isinstance(ends, list) else [ends]:
        if token not in (None, text.eos_token_id):
            name = text.convert_ids_to_tokens(token)
            return (
                f" end answers with its own {name} (model.eos_token={name} and "
                "model.chat_template=prompt/plain.jinja), or"
            )
    return ""


def audit_answers(model: Any, tokenizer: Any, rows: Any) -> dict[str, int]:
    """Let a model that was just trained answer a few of its rows; warns when fewer than half come to an end.

    An answer has ended that takes at most twice the tokens of the longest of the rows' own. Never fails: the
    training is done, and may have taken hours.
    """
    try:
        return _audit_answers(model, tokenizer, rows)
    except Exception as error:
        print(f"No look at the answers: {type(error).__name__}: {first_line(error)[:200]}")
        return {}


def _audit_answers(model: Any, tokenizer: Any, rows: Any) -> dict[str, int]:
    if world_size() > 1:  # a model that is shared out among processes answers in all of them or in none
        return {}
    asked: list[dict[str, Any]] = []
    longest = 0
    for row in evenly(rows, 4 * ANSWERED):
        if len(asked) == ANSWERED or row.get("chat"):  # a row with tools is no question that can be asked
            continue
        answer = text_tokenizer(tokenizer)(row["completion"][-1]["content"], add_special_tokens=False)
        tokens = len(answer["input_ids"])
        if 2 * tokens <= LONGEST:
            asked.append(row)
            longest = max(longest, tokens)
    if not asked:
        return {}
    prompts = [row["prompt"] for row in asked]
    images = list(map(images_of, asked))
    sampling = Sampling(2 * longest + 16, len(asked))
    ended = 0
    with local(model, tokenizer, "default") as source:
        for batch in generate(source, prompts, sampling, images, label="do answers end?"):
            ended += sum(not answer.truncated for answer in batch.values())
    print(f"{ended} of {len(asked)} answers of the trained model come to an end.")
    if ended < len(asked) / 2:
        print(
            "Warning: its answers mostly do not stop. Does the chat template end an answer with "
            f"{text_tokenizer(tokenizer).eos_token}, was the base model trained on that token, "
            "and was the training long enough?"
        )
    return {"asked": len(asked), "ended": ended}


def _trained_turns(tokenizer: Any, ids: list[int], labels: list[int]) -> list[str]:
    """The text of each run of tokens that carry loss."""
    turns: list[list[int]] = []
    before = -100
    for token, label in zip(ids, labels, strict=True):
        if label != -100 and before == -100:
            turns.append([])
        if label != -100:
            turns[-1].append(token)
        before = label
    return [tokenizer.decode(turn) for turn in turns]


def _no_padding(batch: Any) -> Any:
    """Which tokens of a batch could carry loss."""
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    return batch["position_ids"] != 0  # TRL gives no loss to the tokens at which the positions start anew


def _coloured(tokenizer: Any, ids: list[int], labels: list[int], real: list[bool]) -> Text:
    text = Text("  ")
    image = getattr(tokenizer, "image_token_id", None)
    before = None
    for token, label, keep in zip(ids, labels, real, strict=True):
        # An image's tokens are all the same: one stands for them.
        if keep and not (token == image == before):
            text.append(tokenizer.decode([token]), style="green" if label != -100 else "dim")
        before = token
    return text


def audit_images(trainer: Any, processor: Any, batch: Any = None) -> dict[str, Any]:
    """In the first batch every image is there as pixels, and every row has the tokens that its images take.

    `batch`: the first rows, if they are collated already.

    Raises UserError when not: the model would be trained blind.
    """
    rows = _first_rows(trainer)
    counter = TokenCounter(processor)
    expected = [counter.soft(row["images"]) for row in rows]
    images = sum(len(row["images"]) for row in rows)
    if batch is None:
        batch = trainer.data_collator(rows)
    counts = (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    sides = len(counts) // len(rows)  # of pairs: the chosen rows, then the rejected ones
    problem = "" if sum(expected) else "row 0 has 0 image tokens, 0 are expected"
    for row, (count, tokens) in enumerate(zip(counts, expected * sides, strict=True)):
        if count != tokens and not problem:
            problem = f"row {row} has {count} image tokens, {tokens} are expected"
    if "pixel_values" not in batch:
        problem = "the batch has no pixel_values"
    if problem:
        raise UserError(
            f"image audit: {problem}; the model would not see the images "
            "(raise model.max_seq_length, check model.base)"
        )
    print(
        f"Image audit: {images} images in {len(rows)} rows, {sum(expected)} image tokens, "
        f"pixel_values {tuple(batch['pixel_values'].shape)}"
    )
    return {"rows": len(rows), "images": images, "image_tokens": sum(expected)}


def audit_step_0(trainer: Any, tokenizer: Any) -> dict[str, float]:
    """Before the first step policy and reference are the same model: sigmoid loss ln 2, margin 0.

    Raises UserError when they are not: training would start from a wrong reference.
    """
    if sees_images(trainer):
        audit_images(trainer, tokenizer)
    # As few at a time as in training, where the batch was chosen for the memory that there is.
    loss, metrics = _measured(trainer, _first_rows(trainer), trainer.args.per_device_train_batch_size)
    margin = metrics["rewards/margins"]
    chosen, rejected = metrics["rewards/chosen"], metrics["rewards/rejected"]
    print(
        f"Step-0 audit: loss {loss:.4f} (ln 2 = {math.log(2):.4f}), margin {margin:.4f}, "
        f"logps/chosen {metrics['logps/chosen']:.1f}"
    )
    # Written so that a NaN fails.
    same_loss = abs(loss - math.log(2)) <= 0.01
    if not same_loss or max(abs(chosen), abs(rejected)) > 0.01:
        raise UserError(
            f"step-0 audit: loss {loss:.4f} instead of ln 2, rewards {chosen:.3f} and {rejected:.3f} "
            "instead of 0: the reference is not the model that training starts from "
            "(wrong adapter, dropout, or other weights)"
        )
    return {"loss": loss, "margin": margin, "reward_chosen": chosen, "reward_rejected": rejected}


def image_margins(trainer: Any, rows: Any) -> dict[str, float]:
    """`rewards/margins` of pairs with their image, a blank one and another row's.

    They are the same in a policy that does not look.
    """
    rows = rows.select(range(min(len(rows), MARGINS)))
    size = trainer.args.per_device_eval_batch_size
    margins: dict[str, float] = {}
    for kind in KINDS:
        images = swap_images(kind, list(rows["images"]))
        pairs = [row | {"images": shown} for row, shown in zip(rows, images, strict=True)]
        margins[kind] = _measured(trainer, pairs, size)[1]["rewards/margins"]
    print(
        f"rewards/margins with the true image {margins['true']:.3f}, a blank one {margins['blank']:.3f}, "
        f"another row's {margins['swapped']:.3f}"
    )
    return margins


def sees_images(trainer: Any) -> bool:
    """Whether the trainer's rows have images; they are then tokenised batch by batch."""
    return "images" in (trainer.train_dataset.column_names or ())


def _first_rows(trainer: Any) -> list[dict[str, Any]]:
    """Copies of the first rows: a collator may change what it is given."""
    rows = trainer.train_dataset
    return [dict(rows[i]) for i in range(min(AUDITED, len(rows)))]


def _measured(trainer: Any, rows: list[dict[str, Any]], size: int) -> tuple[float, dict[str, float]]:
    """The plain sigmoid loss and the metrics of some rows, `size` at a time and without a step.

    The rows may be changed.
    """
    import torch

    plain = {
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0],
        "use_weighting": False,
        "aux_loss_enabled": False,
    }
    before = {name: getattr(trainer, name) for name in plain}
    training = trainer.model.training
    vars(trainer).update(plain)
    trainer.model.eval()
    loss = 0.0
    metrics: dict[str, float] = {}
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        share = len(batch) / len(rows)
        inputs = trainer._prepare_inputs(trainer.data_collator(batch))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss += share * float(trainer.compute_loss(trainer.model, inputs))
        for name, values in trainer._metrics["eval"].items():
            metrics[name] = metrics.get(name, 0.0) + share * values[-1]
        trainer._metrics["eval"].clear()
    vars(trainer).update(before)
    trainer.model.train(training)
    return loss, metrics

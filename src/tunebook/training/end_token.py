"""Will answers end, and do they: the head's row of the end token before training, some answers after it."""

from __future__ import annotations

import contextlib
from typing import Any

from tunebook.data.rows import evenly, images_of
from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import local
from tunebook.models.chat_template import text_tokenizer
from tunebook.recipe.errors import UserError, first_line
from tunebook.runs.machine import world_size

ANSWERED = 8  # questions that a trained model is asked, to see whether its answers end
LONGEST = 512  # tokens of the longest answer that it is asked for


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

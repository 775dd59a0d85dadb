"""Batched answers from a local model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from tunebook.data.sources import Messages


@dataclass(frozen=True)
class Answer:
    """One generated text without special tokens. `tokens` counts the end of turn; `truncated`: there was none."""

    text: str
    tokens: int
    truncated: bool


def batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first; the same for the same lengths.

    A resumed run, and every model that is compared, sees the same batches: in bfloat16 a batch's shape can change a
    greedy answer.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: list[Messages],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seeds: list[int] | None = None,
    skip: set[int] | None = None,
    label: str = "answering",
) -> Iterator[dict[int, Answer]]:
    """Answers to `prompts`, a batch at a time, as {index: answer}. Batches wholly in `skip` are left out.

    Greedy, or with a `temperature` sampled with a seed of its own for each prompt, so that a resumed run writes the same
    text. The model comes from `models.use_adapter`. Prompts are padded on the left; padding is masked and does not
    shift positions, so that in float32 a batched answer equals the answer given alone.
    """
    texts = [tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    todo = [b for b in batches([len(i) for i in ids], batch_size) if not skip or not skip.issuperset(b)]
    with tqdm(total=sum(map(len, todo)), desc=label, unit="answer", mininterval=1) as bar:
        tokens = 0
        for batch in todo:
            sampler = [_seeded_sampler(temperature, [(seeds or range(len(prompts)))[i] for i in batch])] if temperature else []
            answers = _generate_batch(model, tokenizer, [ids[i] for i in batch], max_new_tokens, sampler)
            tokens += sum(a.tokens for a in answers)
            bar.update(len(batch))
            bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s")
            yield dict(zip(batch, answers, strict=True))


def ask(model: Any, tokenizer: Any, prompt: Messages, max_new_tokens: int = 256) -> str:
    """One greedy answer."""
    ids = tokenizer.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True, return_dict=True)["input_ids"]
    return _generate_batch(model, tokenizer, [list(ids)], max_new_tokens)[0].text


def _generate_batch(model: Any, tokenizer: Any, ids: list[list[int]], max_new_tokens: int, processors: list[Any] | None = None) -> list[Answer]:
    import torch

    padded = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(model.device)
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    with torch.inference_mode():
        out = model.generate(**padded, **settings, logits_processor=processors or [])
    new = out[:, padded["input_ids"].shape[1] :].tolist()
    ends = _end_ids(model, tokenizer)
    return [_answer(tokenizer, row, ends) for row in new]


def _seeded_sampler(temperature: float, seeds: list[int]) -> Any:
    """Turns greedy decoding into sampling with a generator for each row, by inverting the distribution function.

    A row draws one number a step from its own generator, so what it says does not depend on what else is in the batch.
    """
    import torch
    from transformers import LogitsProcessor

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    class SeededSampler(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            draws = torch.cat([torch.rand(1, generator=g) for g in generators]).to(scores.device)
            cumulative = (scores.float() / temperature).softmax(-1).cumsum(-1)
            tokens = torch.searchsorted(cumulative, (draws * cumulative[:, -1]).unsqueeze(1), right=True)
            only = torch.full_like(scores, float("-inf"))
            return only.scatter(1, tokens.clamp(max=scores.shape[-1] - 1), 0.0)

    return SeededSampler()


def _answer(tokenizer: Any, row: list[int], ends: set[int]) -> Answer:
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    text = tokenizer.decode(row[:stop], skip_special_tokens=True)
    return Answer(text, len(row) if stop is None else stop + 1, stop is None)


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}

"""Answers from a model in this process, batch by batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunebook.generation.answers import Answer, Images, Sampling
from tunebook.models import adapters, backend, chat_template
from tunebook.models.chat_template import Messages, render
from tunebook.models.cpu.shared_prefixes import Pass, shared
from tunebook.models.image_input import open_all
from tunebook.recipe.errors import UserError


@dataclass(frozen=True)
class Local:
    """A model in this process, ready for generation. Comes from `local`."""

    model: Any
    tokenizer: Any


@contextlib.contextmanager
def local(model: Any, tokenizer: Any, adapter: str | None) -> Iterator[Local]:
    """The model with one of its adapters (`None`: as its base) as something to ask."""
    with adapters.use_adapter(model, adapter) as active:
        yield Local(active, tokenizer)


def sees_images(source: Local) -> bool:
    """Whether images can go with a question."""
    return hasattr(source.tokenizer, "image_processor")


NO_EYES = "this model sees no images: ask in text, or choose a model that does"


def to_device(model: Any, inputs: Any) -> Any:
    """Where the model is; pixels in its precision."""
    import torch

    return {
        k: v.to(model.device, dtype=model.dtype if torch.is_floating_point(v) else None)
        for k, v in inputs.items()
    }


def batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first; the same for the same lengths.

    A resumed run, and every model that is compared, sees the same batches: in bfloat16 a batch's shape can change a
    greedy answer.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def answers_from_model(
    source: Local, prompts: list[Messages], images: Images, sampling: Sampling, skip: set[int]
) -> Iterator[dict[int, Answer]]:
    """Batch by batch. Prompts are padded on the left; padding is masked and does not shift positions, so that in float32 a
    batched answer equals the answer given alone."""
    import torch

    if any(images) and not sees_images(source):
        raise UserError(NO_EYES)
    if not prompts:  # which a tokenizer will not take
        return
    texts = [
        render(source.tokenizer, prompt, len(shown)) for prompt, shown in zip(prompts, images, strict=True)
    ]
    lengths = [
        len(ids)
        for ids in chat_template.text_tokenizer(source.tokenizer)(texts, add_special_tokens=False)[
            "input_ids"
        ]
    ]
    seeds = sampling.seeds or list(range(len(prompts)))
    for batch in batches(lengths, sampling.batch_size):
        if not skip.issuperset(batch):
            generators = [torch.Generator().manual_seed(seeds[i]) for i in batch]
            with torch.inference_mode():
                rows = _decode(
                    source,
                    encode(source, [texts[i] for i in batch], [images[i] for i in batch]),
                    sampling,
                    generators,
                )
            yield {i: _answer(source, row) for i, row in zip(batch, rows, strict=True)}


def encode(source: Local, texts: list[str], images: Images) -> dict[str, Any]:
    """Rendered prompts and their images as the model takes them."""
    how = {"padding": True, "padding_side": "left", "return_tensors": "pt", "add_special_tokens": False}
    if not any(images):
        return dict(to_device(source.model, chat_template.text_tokenizer(source.tokenizer)(texts, **how)))
    return dict(
        to_device(
            source.model, source.tokenizer(text=texts, images=[open_all(shown) for shown in images], **how)
        )
    )


def _decode(
    source: Local, given: dict[str, Any], sampling: Sampling, generators: list[Any]
) -> list[list[int]]:
    """New token ids of each row, up to and with the end of turn.

    On a CPU, where a step costs by the row, rows that have ended are dropped from batch and cache when half have; a GPU
    would gain little. Not so with images, whose cache is of another kind in every model.
    """
    import torch

    model, ends = source.model, end_ids(source)
    halving = backend.on_cpu() and model.device.type == "cpu" and "pixel_values" not in given
    if halving:
        given = _read_once(model, given)
    rows: list[list[int]] = [[] for _ in given["input_ids"]]
    alive = list(range(len(rows)))
    while alive:
        out = model.generate(
            **given,
            max_new_tokens=sampling.max_new_tokens - len(rows[alive[0]]),
            do_sample=False,
            pad_token_id=chat_template.text_tokenizer(source.tokenizer).pad_token_id,
            logits_processor=[_seeded_sampler(sampling.temperature, [generators[i] for i in alive])]
            if sampling.temperature
            else [],
            stopping_criteria=[_half_done(ends)] if halving else [],
            return_dict_in_generate=True,
        )
        for row, new in zip(alive, out.sequences[:, given["input_ids"].shape[1] :].tolist(), strict=True):
            stop = next((i for i, token in enumerate(new) if token in ends), len(new))
            rows[row] += new[: stop + 1]
        kept = [
            k
            for k, row in enumerate(alive)
            if rows[row][-1] not in ends and len(rows[row]) < sampling.max_new_tokens
        ]
        alive = [alive[k] for k in kept]
        if alive:
            made = out.sequences.shape[1] - given["input_ids"].shape[1]
            mask = torch.nn.functional.pad(given["attention_mask"], (0, made), value=1)
            out.past_key_values.batch_select_indices(torch.tensor(kept, device=model.device))
            given = {
                "input_ids": out.sequences[kept],
                "attention_mask": mask[kept],
                "past_key_values": out.past_key_values,
            }
    return rows


def _read_once(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The batch with a cache of all its prompts but their last tokens, each prompt read once and what all begin with (the system message)
    once for all.

    On a CPU reading prompts takes half of the time; several samples of a prompt, or a common system message, need not pay for it twice.
    """
    import torch

    whole = [
        tuple(ids[seen.bool()].tolist())
        for ids, seen in zip(given["input_ids"], given["attention_mask"], strict=True)
    ]
    prompts = sorted(set(whole))
    start = min(shared(prompts[0], prompts[-1]), min(map(len, prompts)) - 1)
    work = Pass(model.get_decoder())
    if start:
        work.compute([list(prompts[0][:start])], left=False)
    work.take([0] * len(prompts))
    if any(len(prompt) - 1 > start for prompt in prompts):
        work.compute([list(prompt[start:-1]) for prompt in prompts], left=True)
    if work.cache is None:  # every prompt is a single token
        return given
    work.take([prompts.index(prompt) for prompt in whole])
    last = torch.tensor([[prompt[-1]] for prompt in whole])
    mask = torch.cat([work.seen, torch.ones_like(last)], 1)
    return {
        "input_ids": torch.cat([work.ids, last], 1),
        "attention_mask": mask,
        "past_key_values": work.cache,
    }


def _half_done(ends: set[int]) -> Any:
    """Stops generation when half of the rows have ended."""
    import torch
    from transformers import StoppingCriteria

    class HalfDone(StoppingCriteria):  # type: ignore[misc]
        done: Any = False

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            self.done = (
                torch.isin(input_ids[:, -1], torch.tensor(sorted(ends), device=input_ids.device)) | self.done
            )
            return torch.full_like(self.done, bool(2 * self.done.sum() >= len(self.done)))

    return HalfDone()


def _seeded_sampler(temperature: float, generators: list[Any]) -> Any:
    """Turns greedy decoding into sampling with a generator for each row, by inverting the distribution function.

    A row draws one number a step from its own generator, so what it says does not depend on what else is in the batch.
    """
    import torch
    from transformers import LogitsProcessor

    class SeededSampler(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            draws = torch.cat([torch.rand(1, generator=g) for g in generators]).to(scores.device)
            cumulative = (scores.float() / temperature).softmax(-1).cumsum(-1)
            tokens = torch.searchsorted(cumulative, (draws * cumulative[:, -1]).unsqueeze(1), right=True)
            only = torch.full_like(scores, float("-inf"))
            return only.scatter(1, tokens.clamp(max=scores.shape[-1] - 1), 0.0)

    return SeededSampler()


def _answer(source: Local, row: list[int]) -> Answer:
    whole = row[-1] in end_ids(source)
    return Answer(
        chat_template.text_tokenizer(source.tokenizer).decode(
            row[:-1] if whole else row, skip_special_tokens=True
        ),
        len(row),
        not whole,
    )


def end_ids(source: Local) -> set[int]:
    """The tokens that end a turn."""
    ends = source.model.generation_config.eos_token_id
    return {
        chat_template.text_tokenizer(source.tokenizer).eos_token_id,
        *(ends if isinstance(ends, list) else [ends]),
    } - {None}

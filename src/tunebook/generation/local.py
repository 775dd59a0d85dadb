"""Answers from a model in this process, batch by batch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from tunebook.generation.answers import Answer, Images, Sampling
from tunebook.models import adapters, backend
from tunebook.models.chat_template import Messages, render, text_tokenizer
from tunebook.models.cpu.decoding import decode_in_parts, read_prompts_once, stop_at_half
from tunebook.models.image_input import open_all
from tunebook.recipe.errors import UserError

TOO_LITTLE_MEMORY = (
    "out of memory with one answer at a time: free the GPU of other programs, lower max_new_tokens, "
    "or load the model in 4 bit (model.load_in_4bit=true)"
)
NO_EYES = "this model sees no images: ask in text, or choose a model that does"


@dataclass(frozen=True)
class Local:
    """A model in this process, ready for generation, and its tokenizer or processor. Comes from `local`."""

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


def answers_from_model(
    source: Local, prompts: list[Messages], images: Images, sampling: Sampling, skip: set[int]
) -> Iterator[dict[int, Answer]]:
    """Answers as {index: answer}, batch by batch; a batch is left out when all of it is in `skip`.

    Prompts are padded on the left. Padding is masked and does not shift positions, so that in float32 a
    batched answer equals the answer given alone.

    Raises UserError for images when the model sees none.
    """
    if any(images) and not sees_images(source):
        raise UserError(NO_EYES)
    if not prompts:  # which a tokenizer will not take
        return
    # All prompts are rendered first: which of them share a batch depends on the lengths of all.
    texts = []
    for prompt, files in zip(prompts, images, strict=True):
        texts.append(_rendered(source, prompt, len(files)))
    ids = text_tokenizer(source.tokenizer)(texts, add_special_tokens=False)["input_ids"]
    seeds = sampling.seeds or list(range(len(prompts)))
    for batch in batches([len(row) for row in ids], sampling.batch_size):
        if skip.issuperset(batch):
            continue
        parts = [texts[i] for i in batch], [images[i] for i in batch], [seeds[i] for i in batch]
        answers = _answers_of_batch(source, sampling, *parts)
        yield dict(zip(batch, answers, strict=True))


def _answers_of_batch(
    source: Local, sampling: Sampling, texts: list[str], images: Images, seeds: list[int]
) -> list[Answer]:
    """The answers to a batch of rendered prompts; where memory does not suffice, half as many at a time.

    Raises UserError when it does not suffice for one.
    """
    import torch

    answers: list[Answer] = []
    size = len(texts)
    while len(answers) < len(texts):
        part = slice(len(answers), len(answers) + size)
        # On the CPU whatever the model's device: the same seed draws the same numbers everywhere.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        try:
            with torch.inference_mode():
                inputs = encode(source, texts[part], images[part])
                rows = _decode(source, inputs, sampling, generators)
        except (RuntimeError, MemoryError) as error:
            if not backend.is_out_of_memory(error):
                raise
            rows = []
        if rows:
            answers += [_answer(source, row) for row in rows]
            continue
        # Here, and not where it is caught: the error holds on to the tensors.
        if size == 1:
            raise UserError(TOO_LITTLE_MEMORY)
        backend.release()
        tqdm.write(f"Out of memory with {size} answers at a time: goes on with {size // 2}")
        size //= 2
    return answers


def _rendered(source: Local, prompt: Messages, images: int) -> str:
    """A prompt as the model reads it; of one that ends in an answer's beginning, up to where it goes on."""
    if prompt[-1]["role"] != "assistant":
        return render(source.tokenizer, prompt, images)
    return render(source.tokenizer, prompt[:-1], images) + str(prompt[-1]["content"])


def batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first; the same for the same lengths.

    A resumed run, and every model that is compared, sees the same batches: in bfloat16 a batch's shape can
    change a greedy answer.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def encode(source: Local, texts: list[str], images: Images) -> dict[str, Any]:
    """Rendered prompts and their images as the model takes them, where the model is."""
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt", "add_special_tokens": False}
    if any(images):
        pictures = [open_all(files) for files in images]
        inputs = source.tokenizer(text=texts, images=pictures, **options)
    else:
        inputs = text_tokenizer(source.tokenizer)(texts, **options)
    return to_device(source.model, inputs)


def to_device(model: Any, inputs: Any) -> dict[str, Any]:
    """Inputs where the model is; pixels in its precision."""
    import torch

    moved = {}
    for name, tensor in inputs.items():
        dtype = model.dtype if torch.is_floating_point(tensor) else None
        moved[name] = tensor.to(model.device, dtype=dtype)
    return moved


def _decode(
    source: Local, inputs: dict[str, Any], sampling: Sampling, generators: list[Any]
) -> list[list[int]]:
    """New token ids of each row, up to and with the end of turn.

    On a CPU, where a step costs by the row, the rows are shared out to the cores, and those that have ended
    are dropped from batch and cache when half have; a GPU would gain little. Not so with images, whose cache
    is of another kind in every model.
    """
    on_cpu = backend.on_cpu() and source.model.device.type == "cpu" and "pixel_values" not in inputs
    if not on_cpu:
        return _decode_together(source, sampling, inputs, generators)

    def decode_part(
        of_part: dict[str, Any], their_generators: list[Any], stopped: threading.Event
    ) -> list[list[int]]:
        of_part = read_prompts_once(source.model, of_part)
        return _decode_together(source, sampling, of_part, their_generators, stopped)

    return decode_in_parts(decode_part, inputs, generators)


def _decode_together(
    source: Local,
    sampling: Sampling,
    inputs: dict[str, Any],
    generators: list[Any],
    stopped: threading.Event | None = None,
) -> list[list[int]]:
    """New token ids of each row; with `stopped`, rows that have ended are dropped when half have."""
    import torch

    model = source.model
    ends = end_ids(source)
    rows: list[list[int]] = [[] for _ in inputs["input_ids"]]
    # Numbers of the rows that are still in the batch. On a GPU one call ends them all.
    alive = list(range(len(rows)))
    while alive:
        sampler = []
        if sampling.temperature:
            sampler = _samplers(sampling, [generators[i] for i in alive])
        out = model.generate(
            **inputs,
            max_new_tokens=sampling.max_new_tokens - len(rows[alive[0]]),
            do_sample=False,
            pad_token_id=text_tokenizer(source.tokenizer).pad_token_id,
            logits_processor=sampler,
            stopping_criteria=[stop_at_half(ends, stopped)] if stopped else [],
            return_dict_in_generate=True,
        )
        read = inputs["input_ids"].shape[1]
        unfinished = []
        for k, new in enumerate(out.sequences[:, read:].tolist()):
            row = rows[alive[k]]
            row += _up_to_end(new, ends)
            if row[-1] not in ends and len(row) < sampling.max_new_tokens:
                unfinished.append(k)
        alive = [alive[k] for k in unfinished]
        if alive:
            # The next call goes on from the cache of the rows that are left.
            length = out.sequences.shape[1]
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, length - read), value=1)
            out.past_key_values.batch_select_indices(torch.tensor(unfinished, device=model.device))
            inputs = {
                "input_ids": out.sequences[unfinished],
                "attention_mask": mask[unfinished],
                "past_key_values": out.past_key_values,
            }
    return rows


def _up_to_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Tokens up to and with the first that ends a turn; what follows it is padding."""
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1]
    return tokens


def _samplers(sampling: Sampling, generators: list[Any]) -> list[Any]:
    """What turns greedy decoding into sampling: the tokens that may be drawn, and the draw."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    temperature = sampling.temperature
    samplers: list[Any] = []
    if sampling.top_k:
        samplers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        # Which tokens have this probability together depends on the temperature.
        samplers += [TemperatureLogitsWarper(temperature), TopPLogitsWarper(sampling.top_p)]
        temperature = 1.0
    return [*samplers, _seeded_sampler(temperature, generators)]


def _seeded_sampler(temperature: float, generators: list[Any]) -> Any:
    """Turns greedy decoding into sampling with a generator for each row.

    A row draws one number a step from its own generator, so its text does not depend on what else is in the
    batch.
    """
    import torch
    from transformers import LogitsProcessor

    class SeededSampler(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            # Inverting the distribution function: the first token at which it exceeds the number drawn.
            draws = torch.cat([torch.rand(1, generator=g) for g in generators]).to(scores.device)
            cumulative = (scores.float() / temperature).softmax(-1).cumsum(-1)
            tokens = torch.searchsorted(cumulative, (draws * cumulative[:, -1]).unsqueeze(1), right=True)
            # Greedy decoding then has no other choice.
            only = torch.full_like(scores, float("-inf"))
            return only.scatter(1, tokens.clamp(max=scores.shape[-1] - 1), 0.0)

    return SeededSampler()


def _answer(source: Local, row: list[int]) -> Answer:
    tokenizer = text_tokenizer(source.tokenizer)
    ended = row[-1] in end_ids(source)
    text = tokenizer.decode(row[:-1] if ended else row, skip_special_tokens=True)
    return Answer(text, len(row), truncated=not ended)


def end_ids(source: Local) -> set[int]:
    """The tokens that end a turn."""
    ends = source.model.generation_config.eos_token_id
    ids = {text_tokenizer(source.tokenizer).eos_token_id}
    ids.update(ends if isinstance(ends, list) else [ends])
    return ids - {None}

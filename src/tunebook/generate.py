"""Batched answers, from a local model or from any OpenAI-compatible server, kept on disk as they come."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from tqdm.auto import tqdm

from tunebook import models
from tunebook.data.clean import replied
from tunebook.data.images import data_url, open_all, render
from tunebook.data.rows import Messages
from tunebook.recipe import ServerConfig, UserError, first_line, scrubbed, secret
from tunebook.run import intact
from tunebook.sharing import Pass, shared


@dataclass(frozen=True)
class Answer:
    """One generated text without special tokens. `tokens` counts the end of turn; `truncated`: there was none."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Local:
    """A model in this process, ready for generation. Comes from `local`."""

    model: Any
    tokenizer: Any


@dataclass(frozen=True)
class Sampling:
    """How to answer. At temperature 0 greedily; else each prompt is sampled with a seed of its own."""

    max_new_tokens: int
    batch_size: int = 64
    """Prompts that a local model answers at once; a server has its own `concurrency`."""
    temperature: float = 0.0
    seeds: list[int] | None = None


Images = list[list[str]]
"""Of each prompt the files that go with its first question."""


LOOP = re.compile(r"(.{1,40}?)\1{9}.{0,40}\Z", re.DOTALL)


def repeats(text: str) -> bool:
    """Whether a text ends in one piece of up to 40 characters, ten times and more in a row, as those of a collapsed model do."""
    return LOOP.search(text[-500:]) is not None


@contextlib.contextmanager
def local(model: Any, tokenizer: Any, adapter: str | None) -> Iterator[Local]:
    """The model with one of its adapters (`None`: as its base) as something to ask."""
    with models.use_adapter(model, adapter) as active:
        yield Local(active, tokenizer)


def answer_file(
    path: Path,
    source: AbstractContextManager[Local | ServerConfig],
    prompts: list[Messages],
    sampling: Sampling,
    record: Callable[[int, Answer], dict[str, Any]],
    label: str,
    images: Images | None = None,
) -> list[dict[str, Any]]:
    """Append `record(index, answer)` for each prompt to a JSON-lines file as the answers come; returns all, in order.

    What an interrupted run has written is not asked again, and `source` (which may take long to load) not even opened when
    all is there.
    """
    done = {r["index"] for r in read_records(path)}
    if len(done) < len(prompts):
        with source as asked, path.open("a", encoding="utf-8") as out:
            out.write("\n" if out.tell() else "")  # a kill may have cut the last line short
            for answers in generate(asked, prompts, sampling, images, skip=done, label=label):
                out.write("".join(json.dumps({"index": i} | record(i, answer)) + "\n" for i, answer in answers.items()))
                out.flush()
    return read_records(path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of an answer file in the order of the prompts. A line cut short by a kill is left out.

    Raises UserError when the file of a finished stage is damaged.
    """
    records = {}
    for line in intact(path).read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            records[record["index"]] = record
    return [records[i] for i in sorted(records)]


def generate(
    source: Local | ServerConfig,
    prompts: list[Messages],
    sampling: Sampling,
    images: Images | None = None,
    *,
    skip: set[int] | None = None,
    label: str = "answering",
) -> Iterator[dict[int, Answer]]:
    """Answers to `prompts`, with their `images`, as {index: answer}, some at a time; those in `skip` are left out (a local batch when
    all of it is).

    A sample depends on its prompt and seed, not on what else is asked: a resumed run writes the same text (a server may
    keep this less strictly).

    Raises UserError when a server does not answer in spite of retries (what was yielded before is not lost), and for images when
    the model sees none.
    """
    skip = skip or set()
    given = prompts, images or [[] for _ in prompts], sampling, skip
    coming = _from_server(source, *given) if isinstance(source, ServerConfig) else _from_model(source, *given)
    with tqdm(total=len(prompts), initial=len(skip), desc=label, unit="answer", mininterval=1) as bar:
        tokens = 0
        for answers in coming:
            tokens += sum(a.tokens for a in answers.values())
            bar.update(len(answers.keys() - skip))
            bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s")
            yield answers


@dataclass(frozen=True)
class Drawing:
    """How one streamed answer is drawn. At temperature 0 greedily, and `top_p` has no effect."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def stream(source: Local, messages: Messages, drawing: Drawing, shown: dict[int, Any] | None = None) -> Generator[str]:
    """One answer in pieces as it is generated; closing the iterator stops it. `shown` are images (PIL) by the number of the message
    that they go with.

    Raises UserError for an image when the model sees none, and for a conversation that fills the model's context.
    """
    import torch
    from transformers import TextIteratorStreamer

    inputs = _chat_inputs(source, messages, shown or {})
    length, limit = inputs["input_ids"].shape[1], getattr(source.model.config.get_text_config(), "max_position_embeddings", None)
    if limit and length >= limit:
        raise UserError(f"the conversation has {length} tokens, the model reads {limit}: start a new one")
    pieces = TextIteratorStreamer(models.text_tokenizer(source.tokenizer), skip_prompt=True, skip_special_tokens=True)
    stop, failed = threading.Event(), []
    sampled = (
        {"do_sample": True, "temperature": drawing.temperature, "top_p": drawing.top_p, "top_k": 0} if drawing.temperature else {"do_sample": False}
    )

    def work() -> None:
        try:
            torch.manual_seed(drawing.seed)
            with torch.inference_mode():
                source.model.generate(
                    **inputs, **sampled, max_new_tokens=drawing.max_new_tokens, streamer=pieces, stopping_criteria=[_stop_when(stop)]
                )
        except Exception as error:
            failed.append(error)
            pieces.end()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield from (piece for piece in pieces if piece)
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def sees_images(source: Local) -> bool:
    """Whether images can go with a question."""
    return hasattr(source.tokenizer, "image_processor")


NO_EYES = "this model sees no images: ask in text, or choose a model that does"


def _chat_inputs(source: Local, messages: Messages, shown: dict[int, Any]) -> Any:
    given: list[dict[str, Any]] = list(messages)
    if sees_images(source):  # a processor wants every content as a list of parts
        given = [
            {"role": m["role"], "content": [{"type": "image", "image": shown[i]}] * (i in shown) + [{"type": "text", "text": m["content"]}]}
            for i, m in enumerate(messages)
        ]
    elif shown:
        raise UserError(NO_EYES)
    try:
        inputs = source.tokenizer.apply_chat_template(given, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    except jinja2.TemplateError as error:
        raise UserError(f"the model's chat template refuses this conversation: {first_line(error)}") from None
    return _on(source.model, inputs)


def _on(model: Any, inputs: Any) -> Any:
    """Where the model is; pixels in its precision."""
    import torch

    return {k: v.to(model.device, dtype=model.dtype if torch.is_floating_point(v) else None) for k, v in inputs.items()}


def _stop_when(event: threading.Event) -> Any:
    import torch
    from transformers import StoppingCriteria

    class StopWhen(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((len(input_ids),), event.is_set(), device=input_ids.device)

    return StopWhen()


def batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first; the same for the same lengths.

    A resumed run, and every model that is compared, sees the same batches: in bfloat16 a batch's shape can change a
    greedy answer.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _from_server(server: ServerConfig, prompts: list[Messages], images: Images, sampling: Sampling, skip: set[int]) -> Iterator[dict[int, Answer]]:
    """`server.concurrency` requests under way at a time, each answer yielded as it comes.

    In threads rather than on an event loop: a notebook's own loop is already running. The client retries with
    exponential back-off and heeds `Retry-After`.
    """
    import httpx
    import openai

    key = secret(server.api_key_env) or "none"  # a server on this machine asks for none
    try:
        client = openai.OpenAI(base_url=server.url, api_key=key, max_retries=server.retries, timeout=server.timeout)
    except (ValueError, TypeError, httpx.InvalidURL) as error:
        raise UserError(f"pairs.server.url: {first_line(error)}") from None

    def request(i: int) -> Answer:
        seed = {"seed": sampling.seeds[i]} if sampling.seeds else {}
        settings = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, **seed, **server.extra}
        messages = with_urls(prompts[i], images[i])
        reply = client.chat.completions.create(model=server.model, messages=messages, extra_body=settings)  # type: ignore[arg-type]
        if not getattr(reply, "choices", True):
            return Answer("", 0, truncated=True)
        text, truncated, _, tokens = replied(reply)
        return Answer(text, tokens, truncated)

    pool = ThreadPoolExecutor(server.concurrency)
    try:
        waiting = {pool.submit(request, i): i for i in range(len(prompts)) if i not in skip}
        answered, refused = bool(skip), dict[int, Answer]()
        for future in as_completed(waiting):
            try:
                answer = future.result()
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:  # of this prompt (too long, filtered), or of all?
                refused[waiting[future]] = Answer("", 0, truncated=True)
                if not answered and len(refused) in (REFUSED, len(waiting)):
                    raise
                why = f"HTTP {error.status_code}: {scrubbed(first_line(error), key)[:120]}"
            else:
                answered = True
                yield {waiting[future]: answer}
        if refused:
            print(f"Warning: {server.url} refused {len(refused)} of {len(waiting)} prompts, which have no answer ({why})")
            yield refused
    except openai.APIStatusError as error:
        why = (
            f"set {server.api_key_env} in the environment or in .env"
            if error.status_code in (401, 403)
            else scrubbed(" ".join(str(error).split()), key)[:200]
        )
        raise UserError(f"{server.url} refused a request (HTTP {error.status_code}): {why}") from None
    except openai.APIConnectionError:
        raise UserError(f"{server.url} does not answer: start it and run the same command again, answers so far are kept") from None
    except (openai.OpenAIError, ValueError, RecursionError) as error:
        raise UserError(f"{server.url} is no OpenAI-compatible server, or not up to /v1: {scrubbed(first_line(error), key)[:200]}") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        client.close()


REFUSED = 16
"""Prompts that a server may refuse before it has answered one."""


def with_urls(prompt: Messages, images: list[str]) -> list[dict[str, Any]]:
    """A prompt as a server takes it: with its images, in front of the first question."""
    first = next((i for i, m in enumerate(prompt) if m["role"] == "user"), None)
    parts = [{"type": "image_url", "image_url": {"url": data_url(Path(path))}} for path in images]
    return [m | ({"content": [*parts, {"type": "text", "text": m["content"]}]} if parts and i == first else {}) for i, m in enumerate(prompt)]


def _from_model(source: Local, prompts: list[Messages], images: Images, sampling: Sampling, skip: set[int]) -> Iterator[dict[int, Answer]]:
    """Batch by batch. Prompts are padded on the left; padding is masked and does not shift positions, so that in float32 a
    batched answer equals the answer given alone."""
    import torch

    if any(images) and not sees_images(source):
        raise UserError(NO_EYES)
    if not prompts:  # which a tokenizer will not take
        return
    texts = [render(source.tokenizer, prompt, len(shown)) for prompt, shown in zip(prompts, images, strict=True)]
    lengths = [len(ids) for ids in models.text_tokenizer(source.tokenizer)(texts, add_special_tokens=False)["input_ids"]]
    seeds = sampling.seeds or list(range(len(prompts)))
    for batch in batches(lengths, sampling.batch_size):
        if not skip.issuperset(batch):
            generators = [torch.Generator().manual_seed(seeds[i]) for i in batch]
            with torch.inference_mode():
                rows = _decode(source, encode(source, [texts[i] for i in batch], [images[i] for i in batch]), sampling, generators)
            yield {i: _answer(source, row) for i, row in zip(batch, rows, strict=True)}


def encode(source: Local, texts: list[str], images: Images) -> dict[str, Any]:
    """Rendered prompts and their images as the model takes them."""
    how = {"padding": True, "padding_side": "left", "return_tensors": "pt", "add_special_tokens": False}
    if not any(images):
        return dict(_on(source.model, models.text_tokenizer(source.tokenizer)(texts, **how)))
    return dict(_on(source.model, source.tokenizer(text=texts, images=[open_all(shown) for shown in images], **how)))


def _decode(source: Local, given: dict[str, Any], sampling: Sampling, generators: list[Any]) -> list[list[int]]:
    """New token ids of each row, up to and with the end of turn.

    On a CPU, where a step costs by the row, rows that have ended are dropped from batch and cache when half have; a GPU
    would gain little. Not so with images, whose cache is of another kind in every model.
    """
    import torch

    model, ends = source.model, end_ids(source)
    halving = models.on_cpu() and model.device.type == "cpu" and "pixel_values" not in given
    if halving:
        given = _read_once(model, given)
    rows: list[list[int]] = [[] for _ in given["input_ids"]]
    alive = list(range(len(rows)))
    while alive:
        out = model.generate(
            **given,
            max_new_tokens=sampling.max_new_tokens - len(rows[alive[0]]),
            do_sample=False,
            pad_token_id=models.text_tokenizer(source.tokenizer).pad_token_id,
            logits_processor=[_seeded_sampler(sampling.temperature, [generators[i] for i in alive])] if sampling.temperature else [],
            stopping_criteria=[_half_done(ends)] if halving else [],
            return_dict_in_generate=True,
        )
        for row, new in zip(alive, out.sequences[:, given["input_ids"].shape[1] :].tolist(), strict=True):
            stop = next((i for i, token in enumerate(new) if token in ends), len(new))
            rows[row] += new[: stop + 1]
        kept = [k for k, row in enumerate(alive) if rows[row][-1] not in ends and len(rows[row]) < sampling.max_new_tokens]
        alive = [alive[k] for k in kept]
        if alive:
            made = out.sequences.shape[1] - given["input_ids"].shape[1]
            mask = torch.nn.functional.pad(given["attention_mask"], (0, made), value=1)
            out.past_key_values.batch_select_indices(torch.tensor(kept, device=model.device))
            given = {"input_ids": out.sequences[kept], "attention_mask": mask[kept], "past_key_values": out.past_key_values}
    return rows


def _read_once(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The batch with a cache of all its prompts but their last tokens, each prompt read once and what all begin with (the system message)
    once for all.

    On a CPU reading prompts takes half of the time; several samples of a prompt, or a common system message, need not pay for it twice.
    """
    import torch

    whole = [tuple(ids[seen.bool()].tolist()) for ids, seen in zip(given["input_ids"], given["attention_mask"], strict=True)]
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
    return {"input_ids": torch.cat([work.ids, last], 1), "attention_mask": mask, "past_key_values": work.cache}


def _half_done(ends: set[int]) -> Any:
    """Stops generation when half of the rows have ended."""
    import torch
    from transformers import StoppingCriteria

    class HalfDone(StoppingCriteria):  # type: ignore[misc]
        done: Any = False

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            self.done = torch.isin(input_ids[:, -1], torch.tensor(sorted(ends), device=input_ids.device)) | self.done
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
    return Answer(models.text_tokenizer(source.tokenizer).decode(row[:-1] if whole else row, skip_special_tokens=True), len(row), not whole)


def end_ids(source: Local) -> set[int]:
    """The tokens that end a turn."""
    ends = source.model.generation_config.eos_token_id
    return {models.text_tokenizer(source.tokenizer).eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}

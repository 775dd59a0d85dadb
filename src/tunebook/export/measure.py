"""What a model does with held-out questions, in numbers that `parity` compares.

The adapter is measured in this process. A Hugging Face folder is loaded by plain transformers or PEFT, in the
adapter's precision and on its device, in a process of its own; a GGUF file by llama.cpp.

    python -m tunebook.export.measure FOLDER questions.json measured.json
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunebook.data.rows import images_of
from tunebook.evaluation.items import Item
from tunebook.export import llama_cpp
from tunebook.generation.answers import Answer, Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import Local, encode, end_ids
from tunebook.models import chat_template
from tunebook.models.chat_template import Messages, render
from tunebook.recipe.errors import UserError
from tunebook.runs.files import read_json, write_json

POSITIONS = 12
"""Answer tokens of each question whose probabilities are compared, spread evenly."""

LOGITS = 4096
"""Tokens whose logits are compared; a whole vocabulary of each question would be megabytes."""

CANDIDATES = 50
"""Most likely tokens that llama.cpp is asked for."""


@dataclass
class Measurement:
    """What a model does with one question."""

    prompt: list[int]
    """Token ids of the rendered prompt."""
    answer: str
    """Its own greedy answer."""
    truncated: bool
    """Whether that answer did not end by itself."""
    forced: list[int]
    """Token ids of the answer whose probabilities were measured: the adapter's."""
    logps: list[float]
    """Natural log-probabilities of the forced tokens at the compared positions."""
    top: list[int]
    """The likeliest tokens there."""
    logits: list[float] = field(default_factory=list)
    """Of the first answer token, for the first tokens of the vocabulary. Empty of a GGUF file."""


@dataclass
class Measured:
    """What a model does with all questions."""

    questions: list[Measurement]
    ends: list[int]
    """The token ids that end a turn. Empty of a GGUF file."""
    dtype: str = "float32"
    """What the model was computed in."""
    device: str = "cpu"
    """Where."""


def measure(
    source: Local, items: list[Item], max_new_tokens: int, forced: list[list[int]] | None = None
) -> Measured:
    """What a model in this process does with held-out items.

    Args:
        forced: Another model's answers as token ids, one for each item. None: the model's own.
    """
    prompts = [item["prompt"] for item in items]
    images = [images_of(item) for item in items]
    answers: dict[int, Answer] = {}  # by the item's number: batches come in an order of their own
    for batch in generate(source, prompts, Sampling(max_new_tokens, 16), images, label="greedy answers"):
        answers |= batch
    # One item at a time and not padded: a batch would be faster and its numbers not quite the same.
    questions = []
    for i, files in enumerate(images):
        inputs = encode(source, [render(source.tokenizer, prompts[i], len(files))], [files])
        answer = answers[i]
        tokens = forced[i] if forced else _answer_tokens(source, answer, max_new_tokens)
        questions.append(_score(source, inputs, tokens, answer))
    dtype = str(source.model.dtype).removeprefix("torch.")
    return Measured(questions, sorted(end_ids(source)), dtype, source.model.device.type)


def measure_folder(export: Path, reference: Measured, items: list[Item], max_new_tokens: int) -> Measured:
    """A Hugging Face folder, in a process of its own (`main`).

    Raises UserError when it does not load, or the memory is not enough for it.
    """
    forced = [question.forced for question in reference.questions]
    with tempfile.TemporaryDirectory() as scratch:
        questions = Path(scratch) / "questions.json"
        out = Path(scratch) / "measured.json"
        content: dict[str, Any] = {"items": items, "forced": forced, "max_new_tokens": max_new_tokens}
        write_json(questions, content | {"dtype": reference.dtype, "device": reference.device})
        command = [sys.executable, "-m", "tunebook.export.measure", str(export), str(questions), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == -signal.SIGKILL:
            raise UserError(
                "the comparison was killed, most likely because the memory was not enough: "
                "`tunebook export --check` compares again"
            )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise UserError(f"{export} does not load: {lines[-1][:300]}")
        content = read_json(out)
    questions_measured = [Measurement(**question) for question in content.pop("questions")]
    return Measured(questions_measured, **content)


def measure_gguf(gguf: Path, reference: Measured, prompts: list[Messages], max_new_tokens: int) -> Measured:
    """The same through a llama.cpp server: its own template, tokenizer and stop."""
    context = max(len(question.prompt) for question in reference.questions) + max_new_tokens + 64
    with llama_cpp.server(gguf, context=context) as url, ThreadPoolExecutor(4) as pool:

        def ask(messages: Messages, question: Measurement) -> Measurement:
            return _measure_served(url, messages, question, max_new_tokens)

        questions = list(pool.map(ask, prompts, reference.questions))
    return Measured(questions, ends=[])


def _measure_served(url: str, messages: Messages, reference: Measurement, max_new_tokens: int) -> Measurement:
    """One question. The reference's answer is its forced answer too."""
    # llama.cpp renders by the template in the file: what it makes of it is compared as token ids.
    text = _post(url, "/apply-template", messages=messages)["prompt"]
    prompt = _post(url, "/tokenize", content=text, add_special=False, parse_special=True)["tokens"]
    chat = {"messages": messages, "max_tokens": max_new_tokens, "temperature": 0}
    choice = _post(url, "/v1/chat/completions", **chat)["choices"][0]
    # It scores no given tokens, so that each is asked for as the next one. With `cache_prompt` what the
    # requests begin with alike is computed once.
    logps = []
    top = []
    for at, expected in zip(_positions(len(reference.forced)), reference.logps, strict=True):
        reply = _post(
            url,
            "/completion",
            prompt=reference.prompt + reference.forced[:at],
            n_predict=1,
            n_probs=CANDIDATES,
            temperature=0,
            cache_prompt=True,
        )
        if not reply.get("completion_probabilities"):
            # It says none of a token that is part of a character.
            logps.append(math.nan)
            top.append(-1)
            continue
        candidates = reply["completion_probabilities"][0]["top_logprobs"]
        likely = {candidate["id"]: candidate["logprob"] for candidate in candidates}
        # A token that is not among them is less likely than they are: as expected, where that is less.
        logps.append(likely.get(reference.forced[at], min(expected, *likely.values())))
        top.append(max(likely, key=lambda token: likely[token]))
    answer = choice["message"]["content"] or ""
    return Measurement(prompt, answer, choice["finish_reason"] != "stop", reference.forced, logps, top)


def _post(url: str, path: str, **body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=600) as reply:  # noqa: S310
        return json.load(reply)


def _answer_tokens(source: Local, answer: Answer, max_new_tokens: int) -> list[int]:
    """An answer as token ids, with the end of turn if it came to that."""
    tokenizer = chat_template.text_tokenizer(source.tokenizer)
    tokens: list[int] = tokenizer(answer.text, add_special_tokens=False)["input_ids"]
    if not answer.truncated:
        tokens = [*tokens, tokenizer.eos_token_id]
    return tokens[:max_new_tokens]


def _score(source: Local, inputs: dict[str, Any], forced: list[int], answer: Answer) -> Measurement:
    """One pass over the prompt with the forced answer behind it."""
    import torch

    prompt = inputs["input_ids"]
    # What goes along token by token (mask, token types) grows by the answer; an image stays as it is.
    whole = {}
    for key, value in inputs.items():
        whole[key] = value
        if value.shape == prompt.shape:
            whole[key] = torch.nn.functional.pad(value, (0, len(forced)), value=key == "attention_mask")
    whole["input_ids"] = torch.cat([prompt, prompt.new_tensor([forced])], 1)
    with torch.inference_mode():
        # The logits at a token say what comes after it: those before the answer's first token and so on.
        logits = source.model(**whole).logits[0, prompt.shape[1] - 1 : -1].float()
    logps = logits.log_softmax(-1)
    positions = _positions(len(forced))
    return Measurement(
        prompt[0].tolist(),
        answer.text,
        answer.truncated,
        forced,
        logps=[float(logps[at, forced[at]]) for at in positions],
        top=[int(logits[at].argmax()) for at in positions],
        logits=logits[0, :LOGITS].tolist(),
    )


def _positions(length: int) -> list[int]:
    """The positions in an answer that are compared, from the first to the last: where it ends counts too."""
    count = min(POSITIONS, length)
    return [i * (length - 1) // max(1, count - 1) for i in range(count)]


def main(folder: Path, questions: Path, out: Path) -> None:
    """The fresh process: load a folder as anybody would, without Unsloth, and measure it."""
    import torch
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    content = read_json(questions)
    dtype = getattr(torch, content["dtype"])
    adapter = read_json(folder / "adapter_config.json")
    if chat_template.has_processor(folder):
        tokenizer = AutoProcessor.from_pretrained(folder)
        # PEFT has no class that loads an adapter with a base that sees images.
        model = AutoModelForImageTextToText.from_pretrained(
            adapter.get("base_model_name_or_path", folder),
            revision=adapter.get("revision") or "main",
            dtype=dtype,
        )
        if adapter:
            model = PeftModel.from_pretrained(model, folder)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # PEFT's class loads the base that the adapter names, and the adapter on it.
        loader = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
        model = loader.from_pretrained(folder, dtype=dtype)
    source = Local(model.to(content["device"]).eval(), tokenizer)
    measured = measure(source, content["items"], content["max_new_tokens"], content["forced"])
    write_json(out, asdict(measured))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

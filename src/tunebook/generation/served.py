"""Does a server have the model that is needed? Its log-probabilities of a few short answers say it.

The answers are the model's own, greedily, and both are asked how likely their tokens are, each after those
before it (teacher forcing): the model here, and the server for one token at a time by OpenAI's completions
with `logprobs`, as vLLM and SGLang have them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import Local, end_ids, local
from tunebook.generation.server import Client, with_urls
from tunebook.models.adapters import adapter_of
from tunebook.models.chat_template import Messages, render, text_tokenizer
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe, ServerConfig
from tunebook.runs.files import fingerprint, read_json, write_json
from tunebook.runs.stage import adapter_key

TOKENS = 32
"""Of each answer."""

POSITIONS = 8
"""Tokens of each answer that a server is asked for, spread evenly."""

NOISE = 0.01
"""A mean difference of a token's log-probability that says nothing: bfloat16 against float32 made 0.005 on
SmolLM2-135M."""

LIMIT, LIMIT_4_BIT = 0.05, 0.5
"""Of the mean difference, at most. As for exports (`export/parity.py`): other kernels in 16 bits; and a base
in 4 bits here against one in 16, or in 4 by another program, there. Which model of the run a server has is
told apart by what is nearest."""


@dataclass
class Reference:
    """What the run's models do with a few prompts: enough to know each again elsewhere."""

    key: str
    """Of what it depends on."""
    base: str
    """The weights that Unsloth has loaded, a folder or a hub id; in 4 bits those of 4 bits."""
    kind: str
    """The model's `model_type`."""
    sees_images: bool
    dtype: str
    context: int | None
    """The most tokens that the model reads."""
    ends: list[int]
    """The tokens that end a turn."""
    chat_template: str
    prompts: list[list[int]]
    """Token ids."""
    answers: dict[str, list[list[int]]]
    """The token ids of each model's greedy answers."""
    texts: dict[str, list[list[str]]]
    """The same tokens as texts, by which some servers name them."""
    logps: dict[str, dict[str, list[list[float]]]]
    """Of the answers of one model under each model: `logps["sft"]["base"]`."""


def reference(
    recipe: Recipe, model: Any, tokenizer: Any, names: list[str], prompts: list[Messages]
) -> Reference:
    """Measure the models `names` on some prompts, in text alone.

    Args:
        recipe: The recipe.
        model: The base with the adapters of `names` on it.
        tokenizer: Its tokenizer or processor.
        names: Models of the run: `base`, `sft`, ...
        prompts: A few, of those that will be asked.
    """
    text = text_tokenizer(tokenizer)
    rendered = [render(tokenizer, prompt, 0) for prompt in prompts]
    ids = [text(prompt, add_special_tokens=False)["input_ids"] for prompt in rendered]
    # 1) what each model says
    answers: dict[str, list[list[int]]] = {}
    texts: dict[str, list[list[str]]] = {}
    logps: dict[str, dict[str, list[list[float]]]] = {}
    for name in names:
        with local(model, tokenizer, adapter_of(name)) as source:
            answers[name] = _short_answers(source, prompts)
            texts[name] = [[text.decode([token]) for token in answer] for answer in answers[name]]
            ends = sorted(end_ids(source))
    # 2) how likely that is to each model: a server that has another one is then told by its name
    for name in names:
        logps[name] = {}
        for other in names:
            with local(model, tokenizer, adapter_of(other)) as source:
                pairs = zip(ids, answers[name], strict=True)
                logps[name][other] = [_token_logps(source, prompt, answer) for prompt, answer in pairs]
    config = model.config.get_text_config()
    return Reference(
        key=reference_key(recipe, names, prompts),
        base=str(model.config.name_or_path),
        kind=model.config.model_type,
        sees_images=hasattr(model.config, "vision_config"),
        dtype=str(model.dtype).removeprefix("torch."),
        context=getattr(config, "max_position_embeddings", None),
        ends=ends,
        chat_template=tokenizer.chat_template,
        prompts=ids,
        answers=answers,
        texts=texts,
        logps=logps,
    )


def reference_key(recipe: Recipe, names: list[str], prompts: list[Messages]) -> str:
    """What a reference depends on."""
    adapters = {name: adapter_key(recipe, name) for name in names}
    content = list(Reference.__dataclass_fields__)  # a file of another version is made anew
    return fingerprint([recipe.model.model_dump(mode="json"), adapters, prompts, content])


def read_reference(path: Path, key: str) -> Reference | None:
    """The reference of a file, if it is of this key."""
    content = read_json(path)
    return Reference(**content) if content.get("key") == key else None


def write_reference(path: Path, measured: Reference) -> None:
    """Keep a reference: a server that takes the whole GPU can be started after it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(measured))


def _short_answers(source: Local, prompts: list[Messages]) -> list[list[int]]:
    """Greedy answers as token ids."""
    answers = {}
    for batch in generate(source, prompts, Sampling(TOKENS, len(prompts)), label="short answers"):
        answers.update(batch)
    text = text_tokenizer(source.tokenizer)
    rows = []
    for i in range(len(prompts)):
        ids = text(answers[i].text, add_special_tokens=False)["input_ids"]
        if not answers[i].truncated or not ids:
            ids = [*ids, text.eos_token_id]
        rows.append(ids)
    return rows


def _token_logps(source: Local, prompt: list[int], answer: list[int]) -> list[float]:
    """The log-probability of each token of an answer."""
    import torch

    ids = torch.tensor([prompt + answer], device=source.model.device)
    with torch.inference_mode():
        logits = source.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    # The logits at a token say what comes after it.
    of_answer = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    chosen = of_answer.gather(-1, ids[0, len(prompt) :, None])
    return [float(value) for value in chosen[:, 0]]


def compare(
    server: ServerConfig, measured: Reference, name: str, prompts: list[Messages], in_4_bit: bool
) -> dict[str, Any]:
    """Ask a server for the answers of a model, token by token, at each of its addresses.

    Returns:
        `checked`; where it is true `mean_logp_difference`, the largest of all addresses, else `why` not.

    Raises UserError when an address has another model, or renders the prompts otherwise.
    """
    worst = 0.0
    # Each address may have a model of its own.
    for url in server.urls:
        one = server.model_copy(update={"url": url})
        _refuse_other_prompts(one, measured, prompts)
        likely = _likely_tokens(one, measured, name)
        if likely is None:
            return {"checked": False, "why": f"{url} gives no log-probabilities"}
        differences = {}
        for other in measured.logps[name]:
            differences[other] = _mean_difference(likely, measured, name, other)
        _refuse_other_model(one, name, differences, LIMIT_4_BIT if in_4_bit else LIMIT)
        worst = max(worst, differences[name])
    return {"checked": True, "mean_logp_difference": worst}


def _refuse_other_prompts(server: ServerConfig, measured: Reference, prompts: list[Messages]) -> None:
    """Each prompt is asked for a token: a server that counts other tokens renders it by another template."""
    client = Client(server)
    jobs = []
    for i, prompt in enumerate(prompts):
        text = with_urls(prompt, [])
        jobs.append((i, lambda text=text: client.ask(text, {"max_tokens": 1, "temperature": 0})))
    for i, future in client.run(jobs):
        counted = future.result().prompt_tokens
        expected = len(measured.prompts[i])
        if counted and counted != expected:  # not every server counts
            raise UserError(
                f"{server.section}: {server.urls[0]} makes {counted} tokens of a prompt, the model here "
                f"{expected}: it has another chat template or tokenizer (vLLM takes --chat-template). Give "
                f"it this model's, or let another model answer with {server.section}.same_model=false"
            )


Place = tuple[int, int]
"""The number of an answer, and of a token in it."""


def _likely_tokens(
    server: ServerConfig, measured: Reference, name: str
) -> dict[Place, dict[str, float]] | None:
    """What the server finds likely at some places of the model's answers; None where it does not say."""
    client = Client(server)
    places = []
    for i, answer in enumerate(measured.answers[name]):
        count = min(POSITIONS, len(answer))
        places += [(i, k * len(answer) // count) for k in range(count)]
    jobs = []
    for number, (i, at) in enumerate(places):
        tokens = measured.prompts[i] + measured.answers[name][i][:at]
        jobs.append((number, lambda tokens=tokens: client.next_token(tokens)))
    likely = {}
    for number, future in client.run(jobs):
        try:
            candidates = future.result()
        except UserError:  # it knows no completions, or no token ids; a chat it has just answered
            return None
        if candidates is None:
            return None
        likely[places[number]] = candidates
    return likely


def _mean_difference(
    likely: dict[Place, dict[str, float]], measured: Reference, name: str, other: str
) -> float:
    """Between the server and a model here, of the log-probabilities of the tokens of `name`'s answers."""
    differences = []
    for (i, at), candidates in likely.items():
        expected = measured.logps[name][other][i][at]
        token = f"token_id:{measured.answers[name][i][at]}"
        value = candidates.get(token, candidates.get(measured.texts[name][i][at]))
        if value is None:  # less likely than all that are named
            differences.append(max(0.0, expected - min(candidates.values())))
        else:
            differences.append(abs(value - expected))
    return fmean(differences)


def _refuse_other_model(server: ServerConfig, name: str, differences: dict[str, float], limit: float) -> None:
    """Raises UserError when the differences are too large, or another model of the run fits far better."""
    difference = differences[name]
    nearest = min(differences, key=lambda other: differences[other])
    is_another = difference > NOISE and 2 * differences[nearest] < difference
    if difference <= limit and not is_another:
        return
    likely = f" It is nearer to {nearest} ({differences[nearest]:.3f})." if nearest != name else ""
    raise UserError(
        f"{server.section}: what {server.urls[0]} serves as {server.model} is not {name}: log-probabilities "
        f"of {name}'s own answers differ by {difference:.3f} on average, {limit} is allowed.{likely} "
        f"Serve {name}, or let another model answer with {server.section}.same_model=false"
    )

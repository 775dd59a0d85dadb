"""Answers from an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tunebook.generation.answers import Answer, Images, Sampling
from tunebook.models.chat_template import Messages
from tunebook.models.image_input import data_url
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.secrets import scrubbed, secret
from tunebook.recipe.sections import ServerConfig


def answers_from_server(
    server: ServerConfig, prompts: list[Messages], images: Images, sampling: Sampling, skip: set[int]
) -> Iterator[dict[int, Answer]]:
    """`server.concurrency` requests under way at a time, each answer yielded as it comes.

    In threads rather than on an event loop: a notebook's own loop is already running. The client retries with
    exponential back-off and heeds `Retry-After`.
    """
    import httpx
    import openai

    key = secret(server.api_key_env) or "none"  # a server on this machine asks for none
    try:
        client = openai.OpenAI(
            base_url=server.url, api_key=key, max_retries=server.retries, timeout=server.timeout
        )
    except (ValueError, TypeError, httpx.InvalidURL) as error:
        raise UserError(f"pairs.server.url: {first_line(error)}") from None

    def request(i: int) -> Answer:
        seed = {"seed": sampling.seeds[i]} if sampling.seeds else {}
        settings = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            **seed,
            **server.extra,
        }
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
            except (
                openai.BadRequestError,
                openai.UnprocessableEntityError,
            ) as error:  # of this prompt (too long, filtered), or of all?
                refused[waiting[future]] = Answer("", 0, truncated=True)
                if not answered and len(refused) in (REFUSED, len(waiting)):
                    raise
                why = f"HTTP {error.status_code}: {scrubbed(first_line(error), key)[:120]}"
            else:
                answered = True
                yield {waiting[future]: answer}
        if refused:
            print(
                f"Warning: {server.url} refused {len(refused)} of {len(waiting)} prompts, which have no answer ({why})"
            )
            yield refused
    except openai.APIStatusError as error:
        why = (
            f"set {server.api_key_env} in the environment or in .env"
            if error.status_code in (401, 403)
            else scrubbed(" ".join(str(error).split()), key)[:200]
        )
        raise UserError(f"{server.url} refused a request (HTTP {error.status_code}): {why}") from None
    except openai.APIConnectionError:
        raise UserError(
            f"{server.url} does not answer: start it and run the same command again, answers so far are kept"
        ) from None
    except (openai.OpenAIError, ValueError, RecursionError) as error:
        raise UserError(
            f"{server.url} is no OpenAI-compatible server, or not up to /v1: {scrubbed(first_line(error), key)[:200]}"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        client.close()


REFUSED = 16
"""Prompts that a server may refuse before it has answered one."""


def with_urls(prompt: Messages, images: list[str]) -> list[dict[str, Any]]:
    """A prompt as a server takes it: with its images, in front of the first question."""
    first = next((i for i, m in enumerate(prompt) if m["role"] == "user"), None)
    parts = [{"type": "image_url", "image_url": {"url": data_url(Path(path))}} for path in images]
    return [
        m | ({"content": [*parts, {"type": "text", "text": m["content"]}]} if parts and i == first else {})
        for i, m in enumerate(prompt)
    ]


MAX_CHARACTERS = 200_000
"""Of an answer; a longer one counts as cut off."""


def replied(reply: Any) -> tuple[str, bool, int, int]:
    """Of a chat completion its text, whether that was cut off, and the tokens asked and answered.

    Raises ValueError for what a server may send instead.
    """
    choices = getattr(reply, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    text = getattr(message, "content", None) or ""
    if message is None or not isinstance(text, str):
        raise ValueError(f"that is no chat completion: {str(reply)[:80]!r}")
    text = text[: MAX_CHARACTERS + 1].encode("utf-8", "replace").decode()
    counted = [
        getattr(getattr(reply, "usage", None), name, None) for name in ("prompt_tokens", "completion_tokens")
    ]
    asked, answered = (n if isinstance(n, int) and 0 <= n < 2**31 else 0 for n in counted)
    return (
        text,
        getattr(choice, "finish_reason", None) != "stop" or len(text) > MAX_CHARACTERS,
        asked,
        answered,
    )

"""One client for OpenAI-compatible servers: for pairs, for answers to compare, for rows to be cleaned."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.from_thread import start_blocking_portal
from tqdm.auto import tqdm

from tunebook.generation.answers import Answer, Images, Sampling, Usage
from tunebook.models.chat_template import Messages
from tunebook.models.image_input import data_url
from tunebook.recipe.errors import UserError, first_line, one_line
from tunebook.recipe.secrets import scrubbed, secret
from tunebook.recipe.sections import ServerConfig

if TYPE_CHECKING:
    import openai

Result = TypeVar("Result")

REFUSED = 16
"""Prompts that a server may refuse before it has answered one."""

MAX_CHARACTERS = 200_000
"""Of an answer; a longer one counts as cut off."""

CANDIDATES = 20
"""Likeliest tokens that are asked for: as many as vLLM gives."""

CHARACTERS_A_TOKEN = 3.5
"""For an estimate of what a request takes; the server's own count comes after it."""


class Unanswered(UserError):
    """A request has no answer in spite of retries. `reason` says why, without the server's address."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Refused(Unanswered):
    """The server refuses one prompt: it is too long, or filtered."""


class BudgetSpent(UserError):
    """No further request may be made."""


class Client:
    """Requests to a server; the library retries with exponential back-off and heeds `Retry-After`.

    Of several addresses each gets a request in turn. One that does not answer is left out from then on.

    `usage` is what was answered before, and what this client asks is added. `section` of the recipe has the
    server's keys, where that is not the server's own.
    """

    def __init__(self, server: ServerConfig, usage: Usage | None = None, section: str | None = None) -> None:
        import httpx
        import openai
        from aiolimiter import AsyncLimiter

        self.server = server
        self.usage = usage or Usage()
        self.section = section or server.section
        self._key = secret(server.api_key_env) or "none"  # a server on this machine asks for none
        self._clients = []
        try:
            for url in server.urls:
                client = openai.AsyncOpenAI(
                    base_url=url,
                    api_key=self._key,
                    max_retries=server.retries,
                    timeout=server.timeout,
                    http_client=openai.DefaultAioHttpClient(),
                )
                self._clients.append(client)
        except (ValueError, TypeError, httpx.InvalidURL) as error:
            raise UserError(f"{self.section}.url: {first_line(error)}") from None
        # A leaky bucket of tokens, refilled over a minute.
        self._limiter = AsyncLimiter(server.tokens_per_minute, 60) if server.tokens_per_minute else None

    def run(
        self, jobs: Iterable[tuple[int, Callable[[], Awaitable[Result]]]]
    ) -> Iterator[tuple[int, Future[Result]]]:
        """Run numbered jobs that `ask`, `concurrency` at a time; yields each job's future when it has ended.

        Jobs are taken as room is made for them, so that memory does not grow with their number.

        Raises BudgetSpent, after the jobs that were under way have ended: they are paid for.
        """
        waiting = iter(jobs)
        pending: dict[Future[Result], int] = {}
        spent: BaseException | None = None
        # An event loop in a thread of its own: a notebook's is already running. When this block is left
        # early, by Ctrl-C or an error, what is under way is given up: nobody waits for a silent server.
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self._open()):
            while True:
                # Fill the free places, then wait for the first of those under way to end.
                room = 0 if spent else self.server.concurrency - len(pending)
                for number, job in islice(waiting, room):
                    pending[portal.start_task_soon(job)] = number
                if not pending:
                    break
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    number = pending.pop(future)
                    if isinstance(future.exception(), BudgetSpent):
                        spent = future.exception()
                    else:
                        yield number, future
        if spent:
            raise spent

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        """The connections to all addresses, closed at the end."""
        async with contextlib.AsyncExitStack() as stack:
            for client in self._clients:
                await stack.enter_async_context(client)
            yield

    async def ask(self, messages: list[dict[str, Any]], settings: dict[str, Any]) -> Answer:
        """One answer; `settings` are fields of the request, `max_tokens` among them.

        Raises Unanswered (Refused) for this request alone, BudgetSpent, and UserError for what would meet
        every other request too: a wrong key, address or model.
        """
        server = self.server
        cost = self.usage.cost(server)
        if server.budget is not None and cost >= server.budget:
            raise BudgetSpent(
                f"the budget of {server.budget} is spent ({cost:.2f}): raise {self.section}.budget "
                "and run the same command again"
            )
        # 1) Wait until the limit of tokens a minute lets this request pass.
        if self._limiter:
            tokens = len(json.dumps(messages)) / CHARACTERS_A_TOKEN + settings["max_tokens"]
            await self._limiter.acquire(min(tokens, self._limiter.max_rate))

        # 2) Ask. `extra_body` takes what the library has no argument for, and overrides what it has.
        async def request(client: openai.AsyncOpenAI) -> Any:
            create: Any = client.chat.completions.create
            return await create(
                model=server.model, messages=messages, extra_body={**settings, **server.extra}
            )

        answer = await self._request(request, _answer)
        # 3) Only what was answered is paid for.
        self.usage.add(answer.prompt_tokens, answer.tokens)
        return answer

    async def next_token(self, tokens: list[int]) -> dict[str, float] | None:
        """The likeliest tokens after these with their log-probabilities; None from a server that says none.

        By `token_id:7` (vLLM) or by their text.
        """

        async def request(client: openai.AsyncOpenAI) -> Any:
            # Not `echo`, which would say all at once: with adapters vLLM 0.32 ends by it on a CPU.
            options: Any = {"prompt": tokens, "logprobs": CANDIDATES, "max_tokens": 1, "temperature": 0}
            body = {"return_tokens_as_token_ids": True}
            return await client.completions.create(model=self.server.model, **options, extra_body=body)

        return await self._request(request, _candidates)

    async def _request(
        self, request: Callable[[openai.AsyncOpenAI], Awaitable[Any]], read: Callable[[Any], Result]
    ) -> Result:
        """What the next address in turn replies, read. Raises UserError, as `ask` does."""
        import openai

        while True:
            # The first in the list gets the request, and is then the last.
            client = self._clients[0]
            self._clients.append(self._clients.pop(0))
            url = scrubbed(str(client.base_url).rstrip("/"), self._key)
            try:
                return read(await request(client))
            except (openai.OpenAIError, ValueError, RecursionError) as error:
                others = [other for other in self._clients if other is not client]
                if not isinstance(error, openai.APIConnectionError) or not others:
                    raise self._explained(error, url) from None
            if client in self._clients:  # else another request has left it out already
                self._clients = others
                tqdm.write(f"Warning: {url} does not answer and is left out; {len(others)} go on")

    def _explained(self, error: Exception, url: str) -> UserError:
        """What went wrong in one line without a secret, by what it means for other requests."""
        import openai

        detail = one_line(error)
        # Servers say the key back. It is taken out before the text is cut, or half of it might stay.
        detail = scrubbed(detail, self._key)[:200]
        if isinstance(error, openai.APIStatusError):
            code = f"HTTP {error.status_code}"
            if error.status_code in (401, 403, 404):
                return UserError(
                    f"{url} refuses ({code}): {detail}; look at the address and the model's name, "
                    f"or set {self.server.api_key_env} in the environment or in .env"
                )
            kind = Refused if error.status_code in (400, 422) else Unanswered
            return kind(f"{url} refused a request ({code}): {detail}", f"{code}: {detail}")
        if isinstance(error, openai.APIConnectionError):
            return Unanswered(
                f"{url} does not answer: start it and run the same command again, answers so far are kept",
                detail,
            )
        return Unanswered(f"{url} is no OpenAI-compatible server, or not up to /v1: {detail}", detail)


def answers_from_server(
    server: ServerConfig,
    prompts: list[Messages],
    images: Images,
    sampling: Sampling,
    skip: set[int],
    usage: Usage | None = None,
) -> Iterator[dict[int, Answer]]:
    """Each answer as {index: answer} as it comes, without those in `skip`.

    A prompt that the server refuses has an empty answer that counts as cut off.

    Raises UserError when the server does not answer, or refuses every prompt.
    """
    client = Client(server, usage)

    def requests() -> Iterator[tuple[int, Callable[[], Awaitable[Answer]]]]:
        for i, prompt in enumerate(prompts):
            if i not in skip:
                settings = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
                # Not every server knows both.
                if sampling.top_p < 1:
                    settings["top_p"] = sampling.top_p
                if sampling.top_k:
                    settings["top_k"] = sampling.top_k
                if sampling.seeds:
                    settings["seed"] = sampling.seeds[i]
                yield i, partial(client.ask, with_urls(prompt, images[i]), settings)

    total = len(prompts) - len(skip)
    answered = bool(skip)
    refused: dict[int, Answer] = {}
    reason = ""
    for i, future in client.run(requests()):
        try:
            answer = future.result()
        except Refused as error:
            refused[i] = Answer("", 0, truncated=True)
            reason = error.reason[:120]
            # Of this prompt, or is it a mistake in the settings that every prompt will meet?
            if not answered and len(refused) in (REFUSED, total):
                raise
        else:
            answered = True
            yield {i: answer}
    if refused:
        count = f"{len(refused)} of {total} prompts"
        print(f"Warning: {' and '.join(server.urls)} refused {count}, which have no answer ({reason})")
        yield refused


def with_urls(prompt: Messages, images: list[str]) -> list[dict[str, Any]]:
    """A prompt as a server takes it: with its images, in front of the first question."""
    parts: list[dict[str, Any]] = []
    for path in images:
        parts.append({"type": "image_url", "image_url": {"url": data_url(Path(path))}})
    messages: list[dict[str, Any]] = []
    for message in prompt:
        if parts and message["role"] == "user":
            text = {"type": "text", "text": message["content"]}
            messages.append({**message, "content": [*parts, text]})
            parts = []  # the first question has them
        else:
            messages.append(dict(message))
    return messages


def _answer(reply: Any) -> Answer:
    """A chat completion's answer. Raises ValueError for what a server may send instead."""
    choices = getattr(reply, "choices", True)
    if not choices:  # as content filters leave it
        return Answer("", 0, truncated=True)
    choice = choices[0] if isinstance(choices, list) else None
    message = getattr(choice, "message", None)
    text = getattr(message, "content", None) or ""
    if message is None or not isinstance(text, str):
        raise ValueError(f"that is no chat completion: {str(reply)[:80]!r}")
    # Half of a surrogate pair is no text that can be written to a file.
    text = text[: MAX_CHARACTERS + 1].encode("utf-8", "replace").decode()
    usage = getattr(reply, "usage", None)
    return Answer(
        text,
        tokens=_count(usage, "completion_tokens"),
        truncated=getattr(choice, "finish_reason", None) != "stop" or len(text) > MAX_CHARACTERS,
        prompt_tokens=_count(usage, "prompt_tokens"),
    )


def _candidates(reply: Any) -> dict[str, float] | None:
    """The likeliest tokens of a completion's first place, as far as they are there."""
    choices = getattr(reply, "choices", None)
    logprobs = getattr(choices[0], "logprobs", None) if choices else None
    places = getattr(logprobs, "top_logprobs", None)
    return dict(places[0]) if places and places[0] else None


def _count(usage: Any, name: str) -> int:
    """A number of tokens, as far as it is one: not every server counts."""
    number = getattr(usage, name, None)
    return number if isinstance(number, int) and 0 <= number < 2**31 else 0

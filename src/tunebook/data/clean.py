"""`tunebook clean`: raw solutions rewritten by a language model into the house format, each checked against its own answer.

API_KEY=... BASE_URL=https://host/v1 MODEL=name uv run tunebook clean --recipe my.yaml --dry-run
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import sqlite3
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tunebook.checkers.maths import boxed, verify
from tunebook.data import images
from tunebook.data.checks import NOT_AN_ANSWER
from tunebook.data.records import is_file, records
from tunebook.data.rows import Reject
from tunebook.generation.server import replied
from tunebook.models import image_input
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.files import find_file, read_text
from tunebook.recipe.secrets import scrubbed, secret
from tunebook.recipe.sections import CleanConfig, Recipe
from tunebook.runs.files import file_hash, fingerprint
from tunebook.runs.stage import Stage

LOCAL = re.compile(r"^https?://(localhost|127\.|\[::1\])")


EXAMPLE = {"BASE_URL": "https://host/v1", "MODEL": "the-name-there", "API_KEY": "..."}


CHARACTERS_A_TOKEN = 3.5
"""For the estimate before the first request; the server's own count after it."""


DECIDES = {
    "hub_split",
    "question",
    "solution",
    "answer",
    "image",
    "send_images",
    "max_new_tokens",
    "temperature",
    "limit",
    "extra",
}
"""The settings that rows depend on, beside the files, the server and the model."""


FORMAT = re.compile(r"^### Solution\n+1\. .+?\n### Final Answer\n+.*\\boxed\s*\{", re.DOTALL)


@dataclass(frozen=True)
class Server:
    """Where to ask. The key is kept out of everything that is printed or written."""

    url: str
    model: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Raw:
    """A row as it came, with what it needs to be asked and checked."""

    number: int
    question: str
    solution: str
    gold: str
    image: Path | bytes | None
    image_name: str = ""


def clean(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Rewrite every row of `clean.source`; returns the stage's record. Rows end in `clean/rows.jsonl` (ready for a `chat`
    source) or, with the reason, in `clean/quarantine.jsonl`.

    Every answer is in `clean.db` before it counts, so an interrupted run goes on with nothing asked twice; a row that got no
    answer is asked again in the next run (of a finished one: with `force`, which also checks all answers again).

    Raises UserError for a missing key or file, when the server does not answer or refuses, and when the budget is spent.
    """
    config = _config(recipe)
    stage = clean_stage(recipe)
    if stage.skip(force):
        return stage.result
    server = _server(config)
    with stage.open(resume=False) as folder:
        work = _Work(config, server, stage.key, recipe.run_dir / "clean.db")
        work.forget(everything=force)
        work.run(_rows(config), _count(config))
        stage.record = {"rows": work.write(folder), "model": server.model, **work.spent()}
    return stage.result


def clean_stage(recipe: Recipe) -> Stage:
    """The stage that `clean` fills."""
    config = _config(recipe)
    settings = config.model_dump(mode="json", include=DECIDES)
    url, model = _asked(config)
    # Of the address a hash: it is written nowhere.
    settings |= {
        "length_ratio": config.max_length_ratio,
        "model": model,
        "server": fingerprint(scrubbed(url)) if url else None,
    }
    files = {
        name: file_hash(find_file(name))
        for name in (config.prompt, config.source)
        if name == config.prompt or is_file(name)
    }
    return Stage(recipe, "clean", settings, {"source": config.source, **files})


def estimate(recipe: Recipe) -> dict[str, float]:
    """Rows, tokens and cost, before anything is asked (`--dry-run`). Tokens by the length of the texts."""
    config = _config(recipe)
    template = read_text(find_file(config.prompt))
    rows, asked, answered = 0, 0.0, 0.0
    for raw in _rows(config):
        if isinstance(raw, Raw):
            rows += 1
            asked += (len(template) + len(raw.question) + len(raw.solution)) / CHARACTERS_A_TOKEN
            answered += min(1.3 * len(raw.solution) / CHARACTERS_A_TOKEN + 30, config.max_new_tokens)
    cost = (asked * config.price_in + answered * config.price_out) / 1e6
    return {"rows": rows, "tokens in": round(asked), "tokens out": round(answered), "cost": round(cost, 4)}


def check(text: str, raw: Raw, truncated: bool, max_length_ratio: float) -> str | None:
    """Why a rewritten solution is not usable; None when it is."""
    if truncated:
        return "cut off: write it shorter"
    if not text.strip():
        return "empty"
    if NOT_AN_ANSWER.search(text):
        return "error text or refusal"
    if not FORMAT.search(text.strip() + "\n"):
        return "not in the asked format: '### Solution', numbered steps from 1., '### Final Answer', \\boxed{...}"
    if not verify(text, raw.gold, boxed_only=True).correct:
        return f"wrong answer: it ends in {boxed(text)!r}, the original in {raw.gold!r}"
    if not 1 / max_length_ratio <= len(text) / max(len(raw.solution), 80) <= max_length_ratio:
        return f"length: {len(text)} characters for {len(raw.solution)} of the original"
    if foreign := _scripts(text) - _scripts(raw.question + raw.solution):
        return f"another language: letters of {', '.join(sorted(foreign))}"
    return None


class _Work:
    """The rows under way: asks, checks, keeps. All state is in the database; memory holds `concurrency` rows."""

    def __init__(self, config: CleanConfig, server: Server, key: str, path: Path) -> None:
        self.config, self.server, self.key = config, server, key
        self.template = read_text(find_file(config.prompt))
        self.db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, text TEXT, truncated INT, tokens_in INT, tokens_out INT)"
        )
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS outcomes (stage TEXT, row INT, reason TEXT, body TEXT, PRIMARY KEY (stage, row))"
        )
        self.stop, self.silent, self.cost = threading.Event(), 0, self.spent()["cost"]

    def run(self, rows: Iterator[Raw | Reject], total: int | None) -> None:
        """Ask for all rows without an outcome. In a thread with an event loop of its own: a notebook's is already running."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(asyncio.run, self._all(rows, total))
            try:
                future.result()
            except KeyboardInterrupt:
                self.stop.set()
                future.result()
                raise

    def forget(self, everything: bool) -> None:
        """What became of the rows that got no answer in an earlier run, or of all: they are taken up again. Answers stay."""
        self.db.execute(
            "DELETE FROM outcomes WHERE stage = ? AND (? OR reason LIKE 'no answer%')", (self.key, everything)
        )

    def spent(self) -> dict[str, Any]:
        """Tokens and cost of all answers in the database."""
        tokens = self.db.execute(
            "SELECT COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0), COUNT(*) FROM answers"
        ).fetchone()
        cost = (tokens[0] * self.config.price_in + tokens[1] * self.config.price_out) / 1e6
        return {"tokens_in": tokens[0], "tokens_out": tokens[1], "requests": tokens[2], "cost": cost}

    def write(self, folder: Path) -> dict[str, Any]:
        """`rows.jsonl` and `quarantine.jsonl`, in the order of the source; counts by reason."""
        counts: Counter[str] = Counter()
        with (
            (folder / "rows.jsonl").open("w", encoding="utf-8") as good,
            (folder / "quarantine.jsonl").open("w", encoding="utf-8") as bad,
        ):
            for reason, body in self.db.execute(
                "SELECT reason, body FROM outcomes WHERE stage = ? ORDER BY row", (self.key,)
            ):
                counts[reason.partition(":")[0] if reason else "clean"] += 1
                (bad if reason else good).write(body + "\n")
        return dict(counts.most_common())

    async def _all(self, rows: Iterator[Raw | Reject], total: int | None) -> None:
        import openai
        from aiolimiter import AsyncLimiter

        limiter = AsyncLimiter(self.config.tokens_per_minute, 60) if self.config.tokens_per_minute else None
        waiting: Iterator[Raw | Reject] = iter(rows)
        async with openai.AsyncOpenAI(
            base_url=self.server.url,
            api_key=self.server.key,
            max_retries=self.config.retries,
            timeout=self.config.timeout,
            http_client=openai.DefaultAioHttpClient(),
        ) as client:
            with tqdm(total=total, desc="cleaning", unit="row", mininterval=1) as bar:

                async def worker() -> None:
                    for raw in waiting:  # shared by all workers: each takes the next
                        if self.stop.is_set():
                            return
                        await self._row(client, limiter, raw)
                        bar.update()
                        bar.set_postfix_str(f"cost {self.cost:.2f}")

                workers = [asyncio.create_task(worker()) for _ in range(self.config.concurrency)]
                try:
                    await asyncio.gather(*workers)
                except BaseException:
                    self.stop.set()
                    for task in workers:
                        task.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
                    raise

    async def _row(self, client: Any, limiter: Any, raw: Raw | Reject) -> None:
        """One row to its outcome: asked, checked, asked once more with the reason, else quarantined."""
        number = raw.number if isinstance(raw, Raw) else int(raw.source_id.rpartition(":")[2])
        if self.db.execute(
            "SELECT 1 FROM outcomes WHERE stage = ? AND row = ?", (self.key, number)
        ).fetchone():
            return
        if isinstance(raw, Reject):
            self._keep(
                number,
                raw.reason,
                {"source_id": raw.source_id, "reason": raw.reason, "detail": raw.detail, "row": raw.row},
            )
            return
        messages = [{"role": "user", "content": self._content(raw)}]
        text = reason = ""
        for _ in range(2):
            try:
                text, truncated = await self._ask(client, limiter, messages)
            except _Unanswered as error:
                reason = f"no answer: {error}"
                continue
            found = await asyncio.to_thread(check, text, raw, truncated, self.config.max_length_ratio)
            reason = found or ""
            if not found:
                break
            again = f"That is not usable ({reason}). Write it again, complete and in the asked format."
            messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": again}]
        row: dict[str, Any] = {
            "source_id": f"{Path(self.config.source).name}:{raw.number}",
            "prompt": raw.question,
            "completion": text.strip(),
            "answer": raw.gold,
        }
        if raw.image:
            row["images"] = [raw.image_name]
        self._keep(number, reason, row if not reason else {**row, "reason": reason, "original": raw.solution})

    async def _ask(self, client: Any, limiter: Any, messages: list[dict[str, Any]]) -> tuple[str, bool]:
        """Text and whether it was cut off; from the database when the same server was asked the same before."""
        import openai

        config = self.config
        asked = {
            "model": self.server.model,
            "messages": messages,
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
        }
        asked |= {"extra_body": config.extra} if config.extra else {}
        # With the address: a name is the server's own, and another one may call another model so.
        key = hashlib.sha256(
            json.dumps(asked | {"url": self.server.url}, sort_keys=True).encode()
        ).hexdigest()
        if kept := self.db.execute(
            "SELECT text, truncated FROM answers WHERE request = ?", (key,)
        ).fetchone():
            return str(kept[0]), bool(kept[1])
        if config.budget is not None and self.cost >= config.budget:
            raise UserError(
                f"the budget of {config.budget} is spent ({self.cost:.2f}): raise clean.budget and run the same command again"
            )
        if limiter:
            await limiter.acquire(
                min(len(json.dumps(messages)) / CHARACTERS_A_TOKEN + config.max_new_tokens, limiter.max_rate)
            )
        try:
            reply = await client.chat.completions.create(**asked)
            text, truncated, *tokens = replied(reply)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(
                f"{self.server.url} refuses: {self._scrubbed(error)}. Look at API_KEY, BASE_URL and MODEL"
            ) from None
        except (openai.OpenAIError, ValueError, RecursionError) as error:  # also a reply that is no reply
            self.silent += 1
            if self.silent >= 2 * config.concurrency:
                raise UserError(
                    f"{self.server.url} has not answered {self.silent} times: {self._scrubbed(error)}. Run the same command later"
                ) from None
            raise _Unanswered(self._scrubbed(error)) from None
        self.silent = 0
        self.cost += (tokens[0] * config.price_in + tokens[1] * config.price_out) / 1e6
        self.db.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", (key, text, truncated, *tokens)
        )
        return text, truncated

    def _content(self, raw: Raw) -> Any:
        parts = {"{question}": raw.question, "{solution}": raw.solution}
        text = re.sub(r"\{question\}|\{solution\}", lambda m: parts[m[0]], self.template)
        if raw.image is None or not self.config.send_images:
            return text
        return [
            {"type": "image_url", "image_url": {"url": image_input.data_url(raw.image)}},
            {"type": "text", "text": text},
        ]

    def _keep(self, number: int, reason: str, body: dict[str, Any]) -> None:
        self.db.execute(
            "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?)",
            (self.key, number, reason, json.dumps(body, ensure_ascii=False, default=str)),
        )

    def _scrubbed(self, error: Exception) -> str:
        return scrubbed(first_line(error), self.server.key)[:200]


class _Unanswered(Exception):
    """The server gave no answer to one request in spite of retries."""


def examples(recipe: Recipe, n: int = 3) -> list[tuple[str, str, str]]:
    """Question, original and clean solution of the first rows that were rewritten."""
    config = _config(recipe)
    with (recipe.run_dir / "clean" / "rows.jsonl").open(encoding="utf-8") as lines:
        chosen = {
            int(row["source_id"].rpartition(":")[2]): row["completion"]
            for row in map(json.loads, itertools.islice(lines, n))
        }
    raws = (raw for raw in _rows(config) if isinstance(raw, Raw) and raw.number in chosen)
    return [(raw.question, raw.solution, chosen[raw.number]) for raw in itertools.islice(raws, len(chosen))]


def _config(recipe: Recipe) -> CleanConfig:
    if recipe.clean is None:
        raise UserError(
            "the recipe has no `clean` section: give it one with at least `source` (see the README)"
        )
    return recipe.clean


def _asked(config: CleanConfig) -> tuple[str | None, str | None]:
    """Address and model: the recipe's, else the environment's."""
    return config.url or secret("BASE_URL"), config.model or secret("MODEL")


def _server(config: CleanConfig) -> Server:
    url, model = _asked(config)
    key = secret("API_KEY") or ("none" if url and LOCAL.match(url) else None)
    for name, value in (("BASE_URL", url), ("MODEL", model), ("API_KEY", key)):
        if not value:
            raise UserError(
                f"{name} is not set: put it into the environment or into .env, as in {name}={EXAMPLE[name]}"
            )
    return Server(str(url), str(model), str(key))


def _rows(config: CleanConfig) -> Iterator[Raw | Reject]:
    """The source's rows; what cannot be asked comes as a Reject."""
    find = images.finder(find_file(config.source).parent if is_file(config.source) else Path.cwd())
    for number, raw in itertools.islice(
        records(config.source, config.hub_split, "clean.source"), config.limit
    ):
        yield raw if isinstance(raw, Reject) else _raw(config, find, number, raw)


def _raw(
    config: CleanConfig, find: Callable[[str], Path | bytes], number: int, raw: dict[str, Any]
) -> Raw | Reject:
    source_id = f"{Path(config.source).name}:{number}"
    kept = {k: v for k, v in raw.items() if isinstance(v, str | int | float)}
    for column in (config.question, config.solution):
        if not isinstance(raw.get(column), str) or not raw[column].strip():
            return Reject(source_id, "schema", f"{column}: no text", kept)
    gold = raw.get(config.answer) if config.answer else boxed(raw[config.solution])
    if gold is None or not str(gold).strip():
        return Reject(source_id, "no answer to check against", f"no {config.answer or 'boxed answer'}", kept)
    given = raw.get(config.image) if config.image else None
    image, name = None, "" if given is None else str(given)
    if name:
        try:
            image = find(name)
            if config.send_images:
                image_input.read(image)
        except image_input.BadImage as error:
            return Reject(source_id, error.reason, str(error), kept)
    return Raw(number, raw[config.question], raw[config.solution], str(gold), image, name)


def _count(config: CleanConfig) -> int | None:
    """Rows of a .jsonl file, for the progress bar."""
    if not config.source.endswith(".jsonl"):
        return config.limit
    with find_file(config.source).open("rb") as lines:
        return sum(1 for _ in itertools.islice((line for line in lines if line.strip()), config.limit))


def _scripts(text: str) -> set[str]:
    """The writing systems of a text's letters (`LATIN`, `CJK`, ...), Greek apart: it is mathematics."""
    names = (unicodedata.name(c, "").partition(" ")[0] for c in set(text) if c.isalpha())
    return {
        name
        for name in names
        if name and name not in ("GREEK", "MATHEMATICAL", "MODIFIER", "FEMININE", "MASCULINE")
    }

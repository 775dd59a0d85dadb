"""`tunebook clean`: raw solutions rewritten by a language model into the house format.

    API_KEY=... BASE_URL=https://host/v1 MODEL=name uv run tunebook clean --recipe my.yaml --dry-run

Each is checked against its own final answer before it counts.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tunebook.data.files import is_file
from tunebook.data.raw_solutions import Raw, check, count_rows, question_to, source_rows
from tunebook.data.rows import Reject
from tunebook.generation.answers import Answer, Usage
from tunebook.generation.generate import AnswerFile
from tunebook.generation.server import CHARACTERS_A_TOKEN, Client, Unanswered
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import read_text
from tunebook.recipe.overrides import switch
from tunebook.recipe.secrets import scrubbed, secret
from tunebook.recipe.sections import PACE, CleanConfig, Recipe, RequestsConfig, ServerConfig
from tunebook.runs.bars import Bar
from tunebook.runs.files import file_hash, fingerprint
from tunebook.runs.stage import Stage

LOCAL = re.compile(r"^https?://(localhost|127\.|\[::1\])")

EXAMPLE = {"BASE_URL": "https://host/v1", "MODEL": "the-name-there"}

APART = PACE | {"source", "prompt", "url", "model", "max_length_ratio"}
"""Settings that are in the stage's key under another name, or that no row depends on."""

Outcome = dict[str, Any]
"""What became of a row: its `number`, the `reason` why it is not usable (or ""), the `body` to write."""


def clean(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Rewrite every row of `clean.source`; returns the stage's record.

    Rows end in `clean/rows.jsonl` (ready for a `chat` source) or, with the reason, in
    `clean/quarantine.jsonl`. Every answer is in `clean_answers.jsonl` before it counts, so an interrupted run
    goes on with nothing asked twice. A row that got no answer is asked again in the next run (of a finished
    one: with `force`).

    Raises UserError for a missing key or file, when the server does not answer or refuses, and when the
    budget is spent.
    """
    config = _config(recipe)
    stage = clean_stage(recipe)
    force = switch("force", force)
    if stage.skip(force):
        return stage.result
    server = _server(config)
    usage = Usage()
    # All that is kept of an interrupted run are the answers: rows are checked again, which asks nothing.
    with stage.open(resume=False) as folder:
        outcomes_path = folder / "outcomes.jsonl"
        with (
            AnswerFile(recipe.run_dir / "clean_answers.jsonl", "request", usage) as answers,
            AnswerFile(outcomes_path, "number") as outcomes,
        ):
            client = Client(server, usage, "clean")
            _rewrite_all(Rewriter(config, client, answers), outcomes)
            counts = write_rows(outcomes, folder)
        outcomes_path.unlink()
        stage.record = {"rows": counts, "model": server.model, **vars(usage), "cost": usage.cost(server)}
    return stage.result


def clean_stage(recipe: Recipe) -> Stage:
    """The stage that `clean` fills."""
    config = _config(recipe)
    url, model = _address(config)
    settings = config.model_dump(mode="json", exclude=APART)
    settings["length_ratio"] = config.max_length_ratio
    settings["model"] = model
    settings["server"] = fingerprint(scrubbed(url)) if url else None  # the address is written nowhere
    inputs = {"source": config.source, config.prompt: file_hash(config.find_file(config.prompt))}
    if is_file(config.source):
        inputs[config.source] = file_hash(config.find_file(config.source))
    return Stage(recipe, "clean", settings, inputs)


def estimate(recipe: Recipe) -> dict[str, float]:
    """Rows, tokens and cost, before anything is asked (`--dry-run`). Tokens by the length of the texts."""
    config = _config(recipe)
    template = read_text(config.find_file(config.prompt))
    rows = 0
    tokens_in = tokens_out = 0.0
    for raw in source_rows(config):
        if isinstance(raw, Raw):
            rows += 1
            tokens_in += (len(template) + len(raw.question) + len(raw.solution)) / CHARACTERS_A_TOKEN
            # A rewritten solution is somewhat longer than the raw one.
            tokens_out += min(1.3 * len(raw.solution) / CHARACTERS_A_TOKEN + 30, config.max_new_tokens)
    cost = (tokens_in * config.price_in + tokens_out * config.price_out) / 1e6
    return {
        "rows": rows,
        "tokens in": round(tokens_in),
        "tokens out": round(tokens_out),
        "cost": round(cost, 4),
    }


def examples(recipe: Recipe, n: int = 3) -> list[tuple[str, str, str]]:
    """Question, original and clean solution of the first rows that were rewritten."""
    rewritten = {}
    with (recipe.run_dir / "clean" / "rows.jsonl").open(encoding="utf-8") as lines:
        for line in itertools.islice(lines, n):
            row = json.loads(line)
            rewritten[int(row["source_id"].rpartition(":")[2])] = row["completion"]
    out: list[tuple[str, str, str]] = []
    for raw in source_rows(_config(recipe)):
        if len(out) == len(rewritten):
            break
        if isinstance(raw, Raw) and raw.number in rewritten:
            out.append((raw.question, raw.solution, rewritten[raw.number]))
    return out


def _rewrite_all(rewriter: Rewriter, outcomes: AnswerFile) -> None:
    config = rewriter.config
    with Bar(total=count_rows(config), desc="cleaning", unit="row") as bar:

        def keep(outcome: Outcome) -> None:
            outcomes.write([outcome])
            bar.set_postfix_str(f"cost {rewriter.client.usage.cost(config):.2f}", refresh=False)
            bar.update()

        def jobs() -> Iterator[tuple[int, Callable[[], Awaitable[Outcome]]]]:
            for raw in source_rows(config):
                if isinstance(raw, Raw):
                    yield raw.number, partial(rewriter.rewrite, raw)
                else:
                    keep(quarantined(raw))

        for _, future in rewriter.client.run(jobs()):
            keep(future.result())


def quarantined(reject: Reject) -> Outcome:
    """The outcome of a row that cannot be asked."""
    number = int(reject.source_id.rpartition(":")[2])
    return {"number": number, "reason": reject.reason, "body": vars(reject)}


def write_rows(outcomes: AnswerFile, folder: Path) -> dict[str, int]:
    """Write `rows.jsonl` and `quarantine.jsonl`, in the order of the source; returns counts by reason."""
    counts: Counter[str] = Counter()
    with (
        (folder / "rows.jsonl").open("w", encoding="utf-8") as good,
        (folder / "quarantine.jsonl").open("w", encoding="utf-8") as bad,
    ):
        for number in sorted(outcomes):
            outcome = outcomes[number]
            reason = outcome["reason"]
            counts[reason.partition(":")[0] or "clean"] += 1
            file = bad if reason else good
            file.write(json.dumps(outcome["body"], ensure_ascii=False) + "\n")
    return dict(counts.most_common())


class Rewriter:
    """Asks for one row at a time, of many at once: its methods run on the client's event loop."""

    def __init__(self, config: CleanConfig, client: Client, answers: AnswerFile) -> None:
        self.config = config
        self.client = client
        self.answers = answers
        self.template = read_text(config.find_file(config.prompt))
        self.silent = 0
        """Requests without an answer since the last one that had one."""

    async def rewrite(self, raw: Raw) -> Outcome:
        """One row to its outcome: asked, checked, and asked once more with the reason."""
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": question_to(self.config, self.template, raw)}
        ]
        text = reason = ""
        for _ in range(2):
            try:
                answer = await self._ask(messages)
            except Unanswered as error:
                self._give_up_on_silence(error)
                reason = f"no answer: {error.reason}"
                continue
            text = answer.text
            # In a thread: a comparison of formulas may take seconds.
            ratio = self.config.max_length_ratio
            problem = await asyncio.to_thread(check, text, raw, answer.truncated, ratio)
            reason = problem or ""
            if not problem:
                break
            again = f"That is not usable ({reason}). Write it again, complete and in the asked format."
            messages.append({"role": "assistant", "content": text})
            messages.append({"role": "user", "content": again})
        body: dict[str, Any] = {
            "source_id": f"{Path(self.config.source).name}:{raw.number}",
            "prompt": raw.question,
            "completion": text.strip(),
            "answer": raw.gold,
        }
        if raw.image:
            body["images"] = [raw.image_name]
        if reason:
            body |= {"reason": reason, "original": raw.solution}
        return {"number": raw.number, "reason": reason, "body": body}

    async def _ask(self, messages: list[dict[str, Any]]) -> Answer:
        """An answer; from the file when the same server was asked the same before."""
        config, server = self.config, self.client.server
        settings = {"max_tokens": config.max_new_tokens, "temperature": config.temperature}
        # With the address: a name is the server's own, and another one may call another model so.
        request = fingerprint([server.url, server.model, messages, settings, server.extra])
        if request in self.answers:
            kept = self.answers[request]
            return Answer(kept["text"], kept["tokens_out"], kept["truncated"])
        answer = await self.client.ask(messages, settings)
        self.silent = 0
        record = {
            "request": request,
            "text": answer.text,
            "truncated": answer.truncated,
            "tokens_in": answer.prompt_tokens,
            "tokens_out": answer.tokens,
        }
        self.answers.write([record])
        return answer

    def _give_up_on_silence(self, error: Unanswered) -> None:
        """One row without an answer stops no other; a server that answers none stops the run."""
        self.silent += 1
        if self.silent >= 2 * self.config.concurrency:
            url = scrubbed(self.client.server.urls[0])
            raise UserError(
                f"{url} has not answered {self.silent} times: {error.reason}. Run the same command later"
            ) from None


def _config(recipe: Recipe) -> CleanConfig:
    if recipe.clean is None:
        raise UserError(
            "the recipe has no `clean` section: give it one with at least `source` (see the README)"
        )
    return recipe.clean


def _address(config: CleanConfig) -> tuple[str | None, str | None]:
    """The server's address and its name for the model: the recipe's, else the environment's."""
    return config.url or secret("BASE_URL"), config.model or secret("MODEL")


def _server(config: CleanConfig) -> ServerConfig:
    """The server to ask. Raises UserError that names the variable which is not set."""
    url, model = _address(config)
    key = secret(config.api_key_env) or LOCAL.match(url or "")  # one on this machine asks for none
    for name, value in (("BASE_URL", url), ("MODEL", model), (config.api_key_env, key)):
        if not value:
            raise UserError(
                f"{name} is not set: put it into the environment or into .env, "
                f"as in {name}={EXAMPLE.get(name, '...')}"
            )
    shared = config.model_dump(include=set(RequestsConfig.model_fields))
    return ServerConfig(url=str(url), model=str(model), **shared)

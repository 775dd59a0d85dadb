"""Batched answers, from a local model or from any OpenAI-compatible server, kept on disk as they come."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tunebook.generation.answers import Answer, Images, Sampling
from tunebook.generation.local import Local, answers_from_model
from tunebook.generation.server import answers_from_server
from tunebook.models.chat_template import Messages
from tunebook.recipe.sections import ServerConfig
from tunebook.runs.files import intact


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
                out.write(
                    "".join(
                        json.dumps({"index": i} | record(i, answer)) + "\n" for i, answer in answers.items()
                    )
                )
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
    coming = (
        answers_from_server(source, *given)
        if isinstance(source, ServerConfig)
        else answers_from_model(source, *given)
    )
    with tqdm(total=len(prompts), initial=len(skip), desc=label, unit="answer", mininterval=1) as bar:
        tokens = 0
        for answers in coming:
            tokens += sum(a.tokens for a in answers.values())
            bar.update(len(answers.keys() - skip))
            bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s")
            yield answers

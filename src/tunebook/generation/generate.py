"""Answers from a local model or from any OpenAI-compatible server, kept on disk as they come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tunebook.generation.answers import Answer, Images, Sampling, Usage
from tunebook.generation.local import Local, answers_from_model
from tunebook.generation.server import answers_from_server
from tunebook.models.chat_template import Messages
from tunebook.recipe.sections import ServerConfig
from tunebook.runs.bars import Bar
from tunebook.runs.files import ANSWERS_KEY, PROGRESS, fingerprint, intact, read_jsonl, write_json, write_text


class AnswerFile:
    """A file of JSON lines that grows by a record an answer; what a kill interrupts is asked again, no more.

    Records are found by one of their fields. Memory holds where they lie, not their texts. Use it in a `with`
    block.
    """

    def __init__(self, path: Path, field: str = "index", usage: Usage | None = None) -> None:
        """
        Args:
            field: What tells records apart. Of two with the same value the later one counts.
            usage: The tokens of what is in the file already are added.
        """
        self._file = path.open("a+b")  # reads anywhere, writes at the end
        self._field = field
        self._offsets: dict[Any, int] = {}
        self._file.seek(0)
        offset = 0
        line = b"\n"
        for line in self._file:
            try:
                record = json.loads(line)
            except ValueError:  # a kill has cut it short
                record = {}
            # Where a line begins is all that memory keeps: answers may be millions.
            if field in record:
                self._offsets[record[field]] = offset
                if usage and "tokens_in" in record:
                    usage.add(record["tokens_in"], record["tokens_out"])
            offset += len(line)
        # What comes next begins on a line of its own.
        if not line.endswith(b"\n"):
            self._file.write(b"\n")

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, value: Any) -> bool:
        return value in self._offsets

    def __iter__(self) -> Iterator[Any]:
        return iter(self._offsets)

    def __getitem__(self, value: Any) -> dict[str, Any]:
        self._file.seek(self._offsets[value])
        return dict(json.loads(self._file.readline()))

    def write(self, records: list[dict[str, Any]]) -> None:
        """Append records, so that a kill after it loses none of them."""
        offset = self._file.seek(0, 2)
        for record in records:
            self._offsets[record[self._field]] = offset
            offset += self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()


def answer_file(
    path: Path,
    source: AbstractContextManager[Local | ServerConfig],
    prompts: list[Messages],
    sampling: Sampling,
    record: Callable[[int, Answer], dict[str, Any]],
    label: str,
    images: Images | None = None,
    usage: Usage | None = None,
    before: Callable[[dict[int, Answer]], None] | None = None,
) -> list[dict[str, Any]]:
    """Write `record(index, answer)` for each prompt as the answers come; returns all, in order.

    What an interrupted run has written is not asked again, and `source` (which may take long to load) not
    even opened when all is there. `usage` counts what a server has answered, in this run and before. `before`
    gets the answers that come together, before they are recorded.
    """
    progress = path.with_name(PROGRESS)
    with AnswerFile(path, usage=usage) as file:
        done = set(file)
        if len(done) < len(prompts):
            write_json(progress, {path.name: len(prompts)})
            with source as asked:
                for batch in generate(asked, prompts, sampling, images, skip=done, label=label, usage=usage):
                    if before:
                        before(batch)
                    # A batch is written whole: `record` may refuse it.
                    records = []
                    for index, answer in batch.items():
                        line = {"index": index, **record(index, answer)}
                        if answer.prompt_tokens:
                            line |= {"tokens_in": answer.prompt_tokens, "tokens_out": answer.tokens}
                        records.append(line)
                    file.write(records)
    progress.unlink(missing_ok=True)
    return read_records(path)


def drop_other_answers(path: Path, prompts: list[Messages], sampling: Sampling, rest: Any) -> None:
    """Remove a file of answers to other questions, or asked otherwise; the file's key says what of it is.

    Args:
        rest: What else the answers depend on, such as the model: a JSON value.
    """
    settings = dataclasses.asdict(sampling)
    for name in ("top_p", "top_k"):
        # Of answers from before they could be set.
        if settings[name] == getattr(Sampling, name):
            del settings[name]
    if sampling.seeds is not None:
        # A sample depends on its prompt and seed, a greedy answer in bfloat16 also on its batch.
        del settings["batch_size"]
    key = fingerprint([prompts, settings, rest])
    key_file = path.with_name(path.name + ANSWERS_KEY)
    if key_file.exists() and key_file.read_text(encoding="utf-8") != key:
        path.unlink(missing_ok=True)
    write_text(key_file, key)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of an answer file in the order of the prompts. A line cut short by a kill is left out.

    Raises UserError when the file of a finished stage is damaged.
    """
    if not path.exists():
        return []
    records = {record["index"]: record for record in read_jsonl(intact(path))}
    return [records[index] for index in sorted(records)]


def generate(
    source: Local | ServerConfig,
    prompts: list[Messages],
    sampling: Sampling,
    images: Images | None = None,
    *,
    skip: set[int] | None = None,
    label: str = "answering",
    usage: Usage | None = None,
) -> Iterator[dict[int, Answer]]:
    """Answers to `prompts`, with their `images`, as {index: answer}, some at a time.

    Those in `skip` are left out (a local batch when all of it is). A sample depends on its prompt and seed,
    not on what else is asked: a resumed run writes the same text (a server may keep this less strictly).

    Raises UserError when a server does not answer in spite of retries (what was yielded before is not lost),
    and for images when the model sees none.
    """
    skip = skip or set()
    images = images or [[] for _ in prompts]
    if isinstance(source, ServerConfig):
        coming = answers_from_server(source, prompts, images, sampling, skip, usage)
    else:
        coming = answers_from_model(source, prompts, images, sampling, skip)
    with Bar(total=len(prompts), initial=len(skip), desc=label, unit="answer") as bar:
        tokens = 0
        for answers in coming:
            tokens += sum(answer.tokens for answer in answers.values())
            # How many tokens a second, all prompts of a batch together.
            speed = tokens / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{speed:.0f} tokens/s", refresh=False)
            bar.update(len(answers.keys() - skip))
            yield answers

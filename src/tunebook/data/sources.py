"""Where rows come from: one function per format, each yielding `Row`s and, for what cannot be one, `Reject`s.

A row is conversational, as TRL wants it: `prompt` and `completion` are lists of messages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunebook.data import geometry
from tunebook.recipe import ChatSource, GeometrySource, Recipe, UserError, find_file, first_line

Messages = list[dict[str, str]]
SPLITS = ("train", "val", "test")


@dataclass
class Row:
    """One example. `gold` is the exact final answer where there is one; `slice` and `group` are for reports."""

    source_id: str
    split: str
    prompt: Messages
    completion: Messages
    gold: str | None = None
    slice: str = ""
    group: str = ""
    difficulty: str = ""
    tokens: int = 0
    """Of prompt and completion together, as the trainer sees them; filled in by `prepare`."""

    @property
    def question(self) -> str:
        """What the user asks: the text of all messages but the system's."""
        return "\n".join(m["content"] for m in self.prompt if m["role"] != "system")


@dataclass
class Reject:
    """Something that is not trained on, and why. Ends in `quarantine.jsonl`."""

    source_id: str
    reason: str
    detail: str = ""
    row: dict[str, Any] = field(default_factory=dict)


def read(recipe: Recipe) -> Iterator[Row | Reject]:
    """All sources of a recipe, one after the other. The order is the same every time."""
    prompts = Prompts(recipe)
    for source in recipe.data.sources:
        reader: Callable[..., Iterator[Row | Reject]] = READERS[source.format]
        yield from reader(source, recipe, prompts)


class Prompts:
    """The recipe's prompt files, read once, wrapped round bare questions."""

    def __init__(self, recipe: Recipe) -> None:
        data = recipe.data
        self.system = find_file(data.system_prompt).read_text(encoding="utf-8").strip() if data.system_prompt else None
        self.user = find_file(data.user_prompt).read_text(encoding="utf-8").strip() if data.user_prompt else "{question}"
        if "{question}" not in self.user:
            raise UserError(f"{data.user_prompt} has no {{question}}")

    def ask(self, question: str) -> Messages:
        """A bare question as the model gets to see it, the same in training, evaluation and chat."""
        return self.with_system([{"role": "user", "content": self.user.replace("{question}", question)}])

    def with_system(self, messages: Messages) -> Messages:
        """Put the recipe's system prompt first, unless the conversation has one."""
        if self.system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system}, *messages]


def read_geometry(source: GeometrySource, recipe: Recipe, prompts: Prompts) -> Iterator[Row]:
    """The project's own problems; half of val and test is of the slice `same families`, a third `new wordings`, a sixth `new families`."""
    wanted = [("train", source.train, geometry.SLICES[:1])]
    for split, n in (("val", source.val), ("test", source.test)):
        parts = (n - n // 3 - n // 6, n // 3, n // 6)
        wanted += [(split, part, (name,)) for part, name in zip(parts, geometry.SLICES, strict=True)]
    for split, n, slices in wanted:
        try:
            drawn = list(geometry.problems(split, n, recipe.seed, slices))
        except ValueError as error:
            raise UserError(str(error)) from None
        for p in drawn:
            yield Row(
                source_id=f"geometry/{p.id}/{p.wording}",
                split=split,
                prompt=prompts.ask(p.question),
                completion=[{"role": "assistant", "content": p.solution}],
                gold=p.answer,
                slice=p.slice,
                group=p.family,
                difficulty=p.difficulty,
            )


def read_chat(source: ChatSource, recipe: Recipe, prompts: Prompts) -> Iterator[Row | Reject]:
    """`messages`, or `prompt` + `completion` as text or messages, with an optional `answer`."""
    for number, raw in records(local_path(source, recipe), source.hub_split, "data.sources"):
        source_id = f"{Path(source.path).name}:{number}"
        if isinstance(raw, Reject):
            yield raw
            continue
        try:
            prompt, completion = conversation(raw, prompts)
        except ValueError as error:
            yield Reject(source_id, "schema", str(error), raw)
            continue
        row = Row(source_id, source.split or "train", prompt, completion, gold=gold_of(raw), slice=str(raw.get("slice") or ""))
        if source.split is None:
            row.split = _split(row.question, source.val, source.test)
        yield row


def local_path(source: ChatSource, recipe: Recipe) -> str:
    """The source's path with the run folder in place of `{run}`. Raises UserError when `tunebook clean` has not made it yet."""
    path = source.path.replace("{run}", str(recipe.run_dir))
    if path.startswith(str(recipe.run_dir / "clean")) and not Path(path).exists():
        raise UserError(f"no {path}: run `tunebook clean` first")
    return path


READERS: dict[str, Callable[..., Iterator[Row | Reject]]] = {"geometry": read_geometry, "chat": read_chat}


def records(path: str, hub_split: str, key: str) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    """Numbered raw records of a .jsonl or .parquet file (from 1, as an editor counts lines) or of a hub data set.

    Raises UserError that names the recipe's `key` when it cannot be read.
    """
    if path.endswith(".jsonl"):
        yield from _jsonl(find_file(path))
        return
    import datasets

    if path.endswith(".parquet"):
        found = {"path": "parquet", "data_files": str(find_file(path)), "split": "train"}
    elif Path(path).suffix:
        raise UserError(f"{key}: cannot read {path}; give a .jsonl or .parquet file or a hub id")
    else:
        found = {"path": path, "split": hub_split}
    try:
        yield from enumerate(datasets.load_dataset(**found, streaming=True), 1)
    except (OSError, ValueError) as error:  # not found, no network, a damaged file
        raise UserError(f"{key}: cannot read {path} ({first_line(error)})") from None


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            source_id = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                raw = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield number, Reject(source_id, "not UTF-8", str(error), {"line": line.decode("utf-8", "replace")})
            except (ValueError, RecursionError) as error:
                yield number, Reject(source_id, "bad JSON", str(error), {"line": line.decode("utf-8")})
            else:
                yield number, raw if isinstance(raw, dict) else Reject(source_id, "schema", "not an object", {"line": raw})


def conversation(raw: dict[str, Any], prompts: Prompts) -> tuple[Messages, Messages]:
    """Prompt and completion of a raw row. Raises ValueError that names the field."""
    if raw.get("messages") is not None:
        messages = _messages(raw["messages"], "messages")
        prompt, completion = messages[:-1], messages[-1:]
    else:
        for name in ("prompt", "completion"):
            if raw.get(name) is None:
                raise ValueError(f"{name}: missing")
        prompt = prompts.ask(raw["prompt"]) if isinstance(raw["prompt"], str) else _messages(raw["prompt"], "prompt")
        if isinstance(raw["completion"], str):
            completion = [{"role": "assistant", "content": raw["completion"]}]
        else:
            completion = _messages(raw["completion"], "completion")
    if len(completion) != 1 or completion[0]["role"] != "assistant":
        raise ValueError("completion: the last message must be the assistant's, and alone")
    if not prompt or prompt[-1]["role"] != "user":
        raise ValueError("prompt: must end with a user message")
    return prompts.with_system(prompt), completion


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: not a list of messages")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"{name}[{i}].content: not text")
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"{name}[{i}].role: {message.get('role')!r} is none of system, user, assistant")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def gold_of(raw: dict[str, Any]) -> str | None:
    """The exact final answer of a raw row (`answer` or `gold`), if it has one."""
    answer = raw.get("answer", raw.get("gold"))
    return None if answer is None else str(answer)


def _split(question: str, val: float, test: float) -> str:
    """By a hash of the question: the same row stays in the same split when rows are added or reordered."""
    share = int(hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:13], 16) / 16**13
    return "test" if share < test else "val" if share < test + val else "train"

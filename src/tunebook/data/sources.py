"""Where rows come from: one function per format, each yielding `Row`s and, for what cannot be one, `Reject`s.

A row is conversational, as TRL wants it: `prompt` and `completion` are lists of messages. Raw rows of every format first become
`messages`, or `prompt` + `completion` (`FORMATS`), and then a row (`conversation`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunebook.data import geometry, images
from tunebook.data.images import BadImage
from tunebook.data.mm_math import read_mm_math
from tunebook.data.records import Raw, drawn, records, renamed, source_name
from tunebook.data.rows import Messages, Reject, Row, split_of
from tunebook.recipe import ChatSource, GeometrySource, Recipe, UserError, find_file, read_text


def read(recipe: Recipe, folder: Path) -> Iterator[Row | Reject]:
    """All sources of a recipe, one after the other, with their images checked and written to `folder`. The order is the same every time."""
    prompts = Prompts(recipe)
    for source in recipe.data.sources:
        reader: Callable[..., Iterator[Row | Reject]] = READERS[source.format]
        rows = images.stored(reader(source, recipe, prompts), folder, recipe.data.max_image_size)
        for row in images.together(rows, source.val, source.test):
            if isinstance(row, Row) and row.split == "train":
                row.use = source.use
            yield row


class Prompts:
    """The recipe's prompt files, read once, wrapped round bare questions."""

    def __init__(self, recipe: Recipe) -> None:
        data = recipe.data
        self.system = read_text(find_file(data.system_prompt)).strip() if data.system_prompt else None
        self.user = read_text(find_file(data.user_prompt)).strip() if data.user_prompt else "{question}"
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
            drawn = list(geometry.problems(split, n, recipe.seed, slices, source.wordings))
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
    """A file or hub id in one of `FORMATS`, with an optional `answer`."""
    path = local_path(source, recipe)
    find = images.finder(Path(source.images or Path(path).parent))
    found = records(path, source.hub_split, "data.sources", source.hub_config)
    name = source_name(source.path, source.hub_split)
    for number, raw in drawn(found, source.rows, recipe.seed):
        if isinstance(raw, Reject):
            yield raw
            continue
        source_id = f"{name}:{number}"
        try:
            row = FORMATS[source.format](renamed(raw, source.columns))
            prompt, completion = conversation(row, prompts)
            gold = gold_of(row)
        except ValueError as error:
            yield Reject(source_id, "schema", str(error), raw)
            continue
        out = Row(source_id, source.split or "train", prompt, completion, gold=gold, slice=str(row.get("slice") or "")[:80])
        try:
            out.images = images.of_row(raw, find)
        except BadImage as error:
            yield Reject(source_id, error.reason, str(error), raw)
            continue
        if source.split is None:
            out.split = "" if out.images else split_of(out.question, source.val, source.test)
        yield out


def local_path(source: ChatSource, recipe: Recipe) -> str:
    """The source's path with the run folder in place of `{run}`. Raises UserError when `tunebook clean` has not made it yet."""
    path = source.path.replace("{run}", str(recipe.run_dir))
    if path.startswith(str(recipe.run_dir / "clean")) and not Path(path).exists():
        raise UserError(f"no {path}: run `{recipe.command('clean')}` first")
    return path


NO_INPUT = re.compile(r"\W*(?:no\W?input|n/a)\W*", re.IGNORECASE)
"""What rows of Alpaca's form have for an input when there is none."""
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "system": "system"}
"""Who speaks in ShareGPT's form, as a message's role."""


def _alpaca(raw: Raw) -> Raw:
    """`instruction`, `input` (often empty) and `output` (Taori et al. 2023); the input stands below the instruction."""
    instruction, given = _text(raw, "instruction"), _text(raw | {"input": raw.get("input") or ""}, "input")
    prompt = instruction if not given.strip() or NO_INPUT.fullmatch(given[:100]) else f"{instruction}\n\n{given}".strip()
    return {**raw, "messages": None, "prompt": prompt, "completion": _text(raw, "output")}


def _sharegpt(raw: Raw) -> Raw:
    """`conversations` of turns `from` and `value` (or `role` and `content`); the last answer is what is trained on."""
    turns = raw.get("conversations")
    if not isinstance(turns, list):
        raise ValueError("conversations: not a list of turns")
    messages = []
    for i, turn in enumerate(turns):
        said = turn if isinstance(turn, dict) else {}
        who = said.get("from", said.get("role"))
        if not isinstance(who, str) or who not in ROLES:
            raise ValueError(f"conversations[{i}].from: {who!r} is none of {', '.join(ROLES)}")
        text = said.get("value", said.get("content"))
        if not isinstance(text, str):
            raise ValueError(f"conversations[{i}].value: not text")
        messages.append({"role": ROLES[who], "content": text})
    return {**raw, "messages": messages}


def _gsm8k(raw: Raw) -> Raw:
    """`question` and `answer`, whose last line is `#### 1,234` (Cobbe et al. 2021). Calculator marks (`<<2+3=5>>`) are left out, and
    the result is boxed, so that it is read as any other answer."""
    solution, mark, result = _text(raw, "answer").rpartition("####")
    if not mark or not result.strip():
        raise ValueError("answer: no #### before the result")
    gold = result.strip().replace(",", "")
    solution = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return {**raw, "messages": None, "prompt": _text(raw, "question"), "completion": f"{solution}\n\\boxed{{{gold}}}".strip(), "answer": gold}


FORMATS: dict[str, Callable[[Raw], Raw]] = {"chat": dict, "alpaca": _alpaca, "sharegpt": _sharegpt, "gsm8k": _gsm8k}
"""A raw row of a format, as `messages` or as `prompt` + `completion`. Raises ValueError that names the field."""

READERS: dict[str, Callable[..., Iterator[Row | Reject]]] = {"geometry": read_geometry, "mm_math": read_mm_math, **dict.fromkeys(FORMATS, read_chat)}


def _text(raw: Raw, name: str) -> str:
    if not isinstance(raw.get(name), str):
        raise ValueError(f"{name}: {'missing' if raw.get(name) is None else 'not text'}")
    return str(raw[name])


def conversation(raw: Raw, prompts: Prompts) -> tuple[Messages, Messages]:
    """Prompt and completion of a raw row; its own `system` text goes before the recipe's. Raises ValueError that names the field."""
    if raw.get("messages") is not None:
        messages = _messages(raw["messages"], "messages")
        prompt, completion = messages[:-1], messages[-1:]
    else:
        for name in ("prompt", "completion"):
            if raw.get(name) is None:
                raise ValueError(f"{name}: missing")
        prompt = prompts.ask(raw["prompt"])[-1:] if isinstance(raw["prompt"], str) else _messages(raw["prompt"], "prompt")
        if isinstance(raw["completion"], str):
            completion = [{"role": "assistant", "content": raw["completion"]}]
        else:
            completion = _messages(raw["completion"], "completion")
    if len(completion) != 1 or completion[0]["role"] != "assistant":
        raise ValueError("completion: the last message must be the assistant's, and alone")
    if not prompt or prompt[-1]["role"] != "user":
        raise ValueError("prompt: must end with a user message")
    if raw.get("system") and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": _text(raw, "system")}, *prompt]
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
    """The exact final answer of a raw row (`answer` or `gold`), if it has one. Raises ValueError for a list or an object."""
    answer = raw.get("answer", raw.get("gold"))
    if isinstance(answer, list | dict | bytes):
        raise ValueError("answer: neither text nor a number")
    return None if answer is None or not str(answer).strip() else str(answer)


QUESTIONS = ("question", "question_stem", "ctx", "sentence", "goal", "premise", "query", "text")
"""Where the questions of benchmark items stand; elsewhere the longest text is taken."""


def benchmark_files(recipe: Recipe) -> list[Path]:
    """The files with items in `evaluate.benchmarks.data`; few-shot examples (`<task>.train.jsonl`) are none."""
    folder = recipe.evaluate.benchmarks.data
    if folder and not Path(folder).is_dir():
        raise UserError(f"evaluate.benchmarks.data: no folder {folder}")
    return sorted(p.resolve() for p in Path(folder).glob("*.jsonl") if not p.stem.endswith(".train")) if folder else []


def benchmark_items(recipe: Recipe) -> Iterator[Row]:
    """The questions of the benchmark items that lie on this machine, as rows; a gap (WinoGrande) also filled with either option."""
    for path in benchmark_files(recipe):
        for number, raw in records(str(path), "", "evaluate.benchmarks.data"):
            if isinstance(raw, Reject):
                raise UserError(f"evaluate.benchmarks.data: {raw.source_id}: {raw.reason}")
            texts = [v for v in raw.values() if isinstance(v, str)]
            text = next((raw[name] for name in QUESTIONS if isinstance(raw.get(name), str)), max(texts, key=len, default=""))
            filled = [text.replace("_", raw[o]) for o in ("option1", "option2") if "_" in text and isinstance(raw.get(o), str)]
            for asked in (text, *filled):
                yield Row(f"{path.stem}:{number}", "test", [{"role": "user", "content": asked}], [])

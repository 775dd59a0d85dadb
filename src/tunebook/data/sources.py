"""Where rows come from: one function per format, each yielding `Row`s and, for what cannot be one, `Reject`s.

A row is conversational, as TRL wants it: `prompt` and `completion` are lists of messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunebook.data import figures, geometry, images
from tunebook.data.images import BadImage
from tunebook.data.rows import Messages, Reject, Row, split_of
from tunebook.models import cache_dir
from tunebook.recipe import ChatSource, GeometrySource, MMMathSource, Recipe, UserError, find_file, first_line
from tunebook.verify import boxed

SAMPLE = 1
"""Version of the figures that `sample` draws; a new number draws them anew."""


def read(recipe: Recipe, folder: Path) -> Iterator[Row | Reject]:
    """All sources of a recipe, one after the other, with their images checked and written to `folder`. The order is the same every time."""
    prompts = Prompts(recipe)
    for source in recipe.data.sources:
        reader: Callable[..., Iterator[Row | Reject]] = READERS[source.format]
        rows = images.stored(reader(source, recipe, prompts), folder, recipe.data.max_image_size)
        yield from images.together(rows, source.val, source.test)


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
    find = images.finder(Path(source.images or Path(local_path(source, recipe)).parent))
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
        try:
            row.images = _images(raw, find)
        except BadImage as error:
            yield Reject(source_id, error.reason, str(error), raw)
            continue
        if source.split is None:
            row.split = "" if row.images else split_of(row.question, source.val, source.test)
        yield row


def read_mm_math(source: MMMathSource, recipe: Recipe, prompts: Prompts) -> Iterator[Row | Reject]:
    """MM_Math's rows (Sun et al. 2024): the last `\\boxed{}` of `solution` is the answer, `difficult` the slice, `knowledge` the group."""
    path = str(mm_math_sample(source.rows, recipe.seed)) if source.path == "sample" else source.path
    place, found = _mm_math(path, source.hub_split)
    find = images.finder(place)
    for number, raw in found:
        source_id = f"{Path(path).name}:{number}"
        if isinstance(raw, Reject):
            yield raw
            continue
        kept = {k: v for k, v in raw.items() if isinstance(v, str | int | float)}
        try:
            missing = next((k for k in ("question", "solution") if not isinstance(raw.get(k), str)), None)
            if missing:
                raise BadImage("schema", f"{missing}: not text")
            shown = _images(raw, find)
            if not shown:
                raise BadImage("image missing", "the row names no image")
        except BadImage as error:
            yield Reject(source_id, error.reason, str(error), kept)
            continue
        if (gold := boxed(raw["solution"])) is None or not gold.strip():
            yield Reject(source_id, "no answer", "the solution has no \\boxed{}", kept)
            continue
        level, knowledge = (str(raw.get(column) or "") for column in ("difficult", "knowledge"))
        solution = [{"role": "assistant", "content": raw["solution"].strip()}]
        yield Row(source_id, source.split or "", prompts.ask(raw["question"]), solution, gold, level, knowledge, level, shown)


def mm_math_sample(rows: int, seed: int) -> Path:
    """The folder with the project's own problems as figures, drawn once into the user's cache."""
    folder = cache_dir() / f"mm-math-sample-v{SAMPLE}-{rows}-{seed}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            figures.write_sample(folder, rows, seed)
    return folder


def _mm_math(path: str, hub_split: str) -> tuple[Path, Iterator[tuple[int, dict[str, Any] | Reject]]]:
    """Where images lie (a folder or a zip file) and the rows. Raises UserError when there is no such data."""
    if not Path(path).suffix and not Path(path).is_dir():
        path = _download(path)
    if not Path(path).is_dir():
        return Path(path).parent, records(path, hub_split, "data.sources")
    tables, archives = (sorted(Path(path).glob(kind)) for kind in ("*.jsonl", "*.zip"))
    if len(tables) != 1:
        raise UserError(f"data.sources: {path} should hold one .jsonl file, it holds {len(tables)}")
    packed = bool(archives) and not any(p.is_dir() for p in Path(path).iterdir())
    return archives[0] if packed else Path(path), records(str(tables[0]), hub_split, "data.sources")


def _download(hub_id: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(hub_id, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"data.sources: {hub_id} is neither a folder nor a data set of the hub that can be read ({first_line(error)})") from None


def _images(raw: dict[str, Any], find: Callable[[str], Path | bytes]) -> list[Path | bytes]:
    """The image files (or bytes) that a row names as `images`, `image` or `file_name`. Raises BadImage for one that is not there."""
    given: Any = next((raw[k] for k in ("images", "image", "file_name") if raw.get(k)), [])
    out: list[Path | bytes] = []
    for one in given if isinstance(given, list) else [given]:
        name = one.get("path") if isinstance(one, dict) else one  # `datasets` keeps an image as {bytes, path}
        if isinstance(one, dict) and one.get("bytes"):
            out.append(one["bytes"])
        elif isinstance(name, str):
            out.append(find(name))
        else:
            raise BadImage("schema", f"image: {type(one).__name__} is no file name")
    return out


def local_path(source: ChatSource, recipe: Recipe) -> str:
    """The source's path with the run folder in place of `{run}`. Raises UserError when `tunebook clean` has not made it yet."""
    path = source.path.replace("{run}", str(recipe.run_dir))
    if path.startswith(str(recipe.run_dir / "clean")) and not Path(path).exists():
        raise UserError(f"no {path}: run `tunebook clean` first")
    return path


READERS: dict[str, Callable[..., Iterator[Row | Reject]]] = {"geometry": read_geometry, "chat": read_chat, "mm_math": read_mm_math}


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
        rows = datasets.load_dataset(**found, streaming=True)
        for name, feature in (rows.features or {}).items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(name, datasets.Image(decode=False))  # checked and decoded with the rest
        yield from enumerate(rows, 1)
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

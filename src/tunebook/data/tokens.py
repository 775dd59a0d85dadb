"""Rows looked at one by one and their tokens counted, in processes of their own (`python -m tunebook.data.tokens`).

That takes most of the time of `prepare`, and it needs transformers, which loads PyTorch: 15 s and 800 MB. The processes hide
PyTorch from it, as transformers allows (its tokenizers work, its models don't). It cannot be hidden in a process that may
train later.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2

from tunebook.data import checks
from tunebook.data.rows import Reject, Row, rejected
from tunebook.models import builtin, chat_template, image_input, tokenizer
from tunebook.models.tokenizer import image_counter, load_tokenizer
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import ModelConfig

Item = Row | Reject


BATCH = 500
"""Rows that are looked at together."""


FEW = 5_000
"""Fewer rows than this are not worth a second process: each takes 4 s to start."""


PROCESSES = min(4, len(os.sched_getaffinity(0)))
"""Of 150 MB each. More than four would wait for the process that reads and writes."""


def looked_at(
    items: Iterable[Item], config: ModelConfig, folder: Path, processes: int = PROCESSES, size: int = BATCH
) -> Iterator[Item]:
    """The items in their order; each row with its tokens, or as a reject when its content is not sound or it is too long.

    They come and go in batches of `size`, few at a time: memory stays flat. `folder` holds the images of rows; rows with images
    are looked at in this process, by a processor that needs PyTorch.
    """
    items = iter(items)
    first = list(itertools.islice(items, FEW))
    few = len(first) < FEW
    here = (few and "transformers" in sys.modules) or any(
        isinstance(item, Row) and item.images for item in first
    )
    count = 0 if here else 1 if few else processes
    coming = itertools.chain(first, items)
    del first
    batches: Iterator[list[Item]] = iter(lambda: list(itertools.islice(coming, size)), [])
    with contextlib.ExitStack() as closing:
        pool = closing.enter_context(ThreadPoolExecutor(max(1, count)))
        look = _looker(_Here(config, folder), [closing.enter_context(Worker(config)) for _ in range(count)])
        yield from itertools.chain.from_iterable(_in_order(pool, look, batches, 2 * max(1, count)))


def _looker(here: _Here, workers: list[Worker]) -> Callable[[list[Item]], list[Item]]:
    """Looks at a batch by a worker that is free; here when there are none, or when a row has images."""
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def look(batch: list[Item]) -> list[Item]:
        rows = [item for item in batch if isinstance(item, Row)]
        if not rows:
            return batch
        if not workers or any(row.images for row in rows):
            found = iter(here.look(rows))
        else:
            worker = free.get()
            try:
                found = iter(worker.look(rows))
            finally:
                free.put(worker)
        return [(next(found) or item) if isinstance(item, Row) else item for item in batch]

    return look


def _in_order(
    pool: ThreadPoolExecutor,
    look: Callable[[list[Item]], list[Item]],
    batches: Iterable[list[Item]],
    ahead: int,
) -> Iterator[list[Item]]:
    """What `pool.map` gives, with no more than `ahead` batches under way (that one reads all of them first)."""
    waiting: deque[Future[list[Item]]] = deque()
    for batch in batches:
        waiting.append(pool.submit(look, batch))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def text_counter(config: ModelConfig) -> Iterator[tuple[Callable[[str], int], list[str]]]:
    """Counts a text's tokens, in this process if transformers is there already; and the tokenizer's control tokens."""
    if "transformers" in sys.modules:
        tok = load_tokenizer(config)
        yield lambda text: len(tok(text)["input_ids"]), tokenizer.control_tokens(tok)
    else:
        with Worker(config) as worker:
            yield worker.count, worker.control


Count = int | str
"""The tokens of a row, or why the chat template refuses it."""


def examine(
    rows: list[Row],
    count: Callable[[list[Row]], list[Count]],
    control: Callable[[Row], Reject | None],
    limit: int,
) -> list[Reject | None]:
    """Why each row is not sound (None: it is); fills in `tokens`, and `gold` where it can be read from the answer."""
    found = [checks.check_content(row) or control(row) for row in rows]
    sound = [i for i, reject in enumerate(found) if reject is None]
    for i, tokens in zip(sound, count([rows[i] for i in sound]), strict=True):
        if isinstance(tokens, str):
            found[i] = rejected(rows[i], "refused by the chat template", tokens)
        else:
            rows[i].tokens = tokens
            found[i] = checks.check_length(rows[i], limit)
    return found


def count_text(tok: Any, rows: list[Row]) -> list[Count]:
    """Tokens of each row as the trainer sees them."""
    texts, refused = list[str](), dict[int, str]()
    for i, row in enumerate(rows):
        try:
            texts.append(tok.apply_chat_template(row.prompt + row.completion, tokenize=False))
        except jinja2.TemplateError as error:
            refused[i] = first_line(error)
    counts = iter(tok(texts, add_special_tokens=False)["input_ids"] if texts else [])
    return [refused.get(i) or len(next(counts)) for i in range(len(rows))]


class _Here:
    """In this process, with PyTorch: of rows with images their images' tokens are counted too."""

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.tok: Any = None
        self.images: image_input.TokenCounter | None = None
        self.lock = threading.Lock()

    def look(self, rows: list[Row]) -> list[Reject | None]:
        with self.lock:
            if self.tok is None:
                self.tok = load_tokenizer(self.config)
                self.control = checks.without(tokenizer.control_tokens(self.tok))
            return examine(rows, self._count, self.control, self.config.max_seq_length)

    def _count(self, rows: list[Row]) -> list[Count]:
        plain = iter(count_text(self.tok, [row for row in rows if not row.images]))
        return [self._with_images(row) if row.images else next(plain) for row in rows]

    def _with_images(self, row: Row) -> Count:
        self.images = self.images or image_counter(self.config)
        try:
            text = chat_template.render(
                self.images.processor, row.prompt + row.completion, len(row.images), answer_next=False
            )
        except jinja2.TemplateError as error:
            return first_line(error)
        return len(self.tok(text, add_special_tokens=False)["input_ids"]) + self.images.added(
            self.folder / name for name in row.images
        )


class Worker:
    """A process that looks at batches of rows, or counts the tokens of texts; ended with the `with` block."""

    def __init__(self, config: ModelConfig) -> None:
        builtin.resolve(config.base)  # made here, once: that needs PyTorch
        command = [sys.executable, "-m", "tunebook.data.tokens", config.model_dump_json()]
        env = os.environ | {"TRANSFORMERS_VERBOSITY": "error"}  # it would tell of the missing PyTorch
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *args: object) -> None:
        self.process.kill()
        self.process.communicate()

    def look(self, rows: list[Row]) -> list[Reject | None]:
        """As `examine`."""
        out: list[Reject | None] = []
        for row, (gold, tokens, reason, detail) in zip(
            rows, self._ask([vars(row) for row in rows]), strict=True
        ):
            row.gold, row.tokens = gold, tokens
            out.append(rejected(row, reason, detail) if reason else None)
        return out

    def count(self, text: str) -> int:
        """Tokens of a text, without those of a chat template."""
        return int(self._ask([text])[0])

    @functools.cached_property
    def control(self) -> list[str]:
        """The tokenizer's control tokens, which is what the process says first."""
        return self._reply()

    def _ask(self, batch: list[Any]) -> list[Any]:
        _ = self.control
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(batch), file=self.process.stdin, flush=True)
        return self._reply()

    def _reply(self) -> list[Any]:
        assert self.process.stdout is not None  # noqa: S101 - for the type checker
        reply = json.loads(self.process.stdout.readline() or "null")
        if not isinstance(reply, list):
            raise UserError(
                reply
                or "a process that counted tokens has ended, perhaps for want of memory: run the same command again"
            )
        return reply


def _serve(config: ModelConfig) -> None:
    """The worker's side: a line with rows or texts in, a line with what was found out."""
    try:
        tok = load_tokenizer(config)
    except UserError as error:
        print(json.dumps(str(error)), flush=True)
        return
    control = tokenizer.control_tokens(tok)
    print(json.dumps(control), flush=True)
    unmarked = checks.without(control)
    for line in sys.stdin:
        batch = json.loads(line)
        if isinstance(batch[0], str):
            reply: list[Any] = [len(ids) for ids in tok(batch)["input_ids"]]
        else:
            rows = [Row(**values) for values in batch]
            found = examine(rows, lambda sound: count_text(tok, sound), unmarked, config.max_seq_length)
            reply = [
                [row.gold, row.tokens, *((r.reason, r.detail) if r else ("", ""))]
                for row, r in zip(rows, found, strict=True)
            ]
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]
    with contextlib.suppress(KeyboardInterrupt):
        _serve(ModelConfig.model_validate_json(sys.argv[1]))

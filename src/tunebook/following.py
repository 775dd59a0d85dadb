"""What a stage under way has to say, read from its files: the notebook runs in another process."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tunebook.runs.files import PROGRESS, read_json, tokens_seen

LOOK_S = 1.0
"""How often the files are looked at."""

SAY_S = 10.0
"""How often a line is printed, after the first."""

QUIET_S = 30.0
"""After so long without a line one says that the stage is alive; the next after twice as long, and so on."""

TIMED_STEPS = 5
"""How many steps are timed before anything is foretold from them."""

ANSWERS = ("retention.jsonl", "samples.jsonl", "errors.jsonl", "predictions.jsonl", "losses.jsonl")
"""Files that grow by an answer a line; of two that are there the first is the later one."""


@contextlib.contextmanager
def following(
    name: str,
    folders: list[Path],
    say: Callable[[str], None] = tqdm.write,
    forecast: Callable[[float], str] | None = None,
    doing: Callable[[], str] = str,
) -> Iterator[None]:
    """While the block runs, print how far the stage is.

    Args:
        name: Of the step, at the beginning of each line.
        folders: Where its stage writes while it is at work.
        say: Prints a line.
        forecast: What to say once of the steps to come, from the seconds of a training step.
        doing: What it is at work on, where the files say nothing; empty where that is not known.
    """
    stopped = threading.Event()

    def follow() -> None:
        progress = Progress(name)
        said_at = time.monotonic()
        patience = QUIET_S
        is_first, foretold = True, False
        while not stopped.wait(LOOK_S):
            now = time.monotonic()
            line = progress.line(folders, now)
            if line and (is_first or now - said_at >= SAY_S):
                say(line)
                said_at, patience, is_first = now, QUIET_S, False
            elif now - said_at >= patience:
                say(f"{name:9} still at work{doing()}, {minutes(now - said_at)}")
                patience *= 2
            if forecast and not foretold and progress.timed_steps >= TIMED_STEPS and progress.left_s:
                foretold = True
                say(forecast(progress.step_s))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


class Progress:
    """How far a stage is, by what it has written since this was made."""

    def __init__(self, name: str) -> None:
        self.name = name
        # The first step with its tokens, and the first number of answers that were seen, each with its time.
        self.first_step: tuple[int, float, float] | None = None
        self.first_answers: dict[Path, tuple[int, float]] = {}
        # The newest ones that were seen, and when they came: until the next nothing is timed anew.
        self.newest_step: tuple[int, float] | None = None
        self.newest_answers: dict[Path, tuple[int, float]] = {}
        # How many answers a file will have.
        self.totals: dict[Path, int] = {}
        self.last = ""
        # How many steps of a training were timed, what each took in the mean, and how long the others take.
        self.timed_steps, self.step_s, self.left_s = 0, 0.0, 0.0

    def line(self, folders: list[Path], now: float) -> str:
        """The newest that can be said; empty when it has been said already.

        Args:
            now: In seconds.
        """
        line = ""
        for folder in folders:
            line = self._training(folder, now) or self._answers(folder, now) or line
        if line == self.last:
            return ""
        self.last = line
        return line

    def _training(self, folder: Path, now: float) -> str:
        """The newest loss, with the time left."""
        progress = read_json(folder / PROGRESS)
        total, done = progress.get("steps"), progress.get("done", -1)
        entry = _newest_loss(folder / "metrics.jsonl")
        step = int(entry["step"]) if entry else 0
        if total and step <= done:
            return f"{self.name:9} {'goes on at' if done else 'begins at'} step {done + 1} of {total}"
        if entry is None or not total:
            return ""
        parts = [f"{self.name:9} step {step} of {total}", f"loss {float(entry['loss']):.3f}"]
        if "learning_rate" in entry:
            parts.append(f"learning rate {float(entry['learning_rate']):.1e}")
        # Counted from the first step that was seen: a resumed training does not begin at 0.
        tokens = tokens_seen(entry) or 0.0
        if self.first_step is None or step < self.first_step[0]:
            self.first_step = step, tokens, now
        if self.newest_step is None or step != self.newest_step[0]:
            self.newest_step = step, now
        first_step, first_tokens, since = self.first_step
        steps, seconds = step - first_step, self.newest_step[1] - since
        if steps > 0 and seconds > 0:
            self.timed_steps, self.step_s = steps, seconds / steps
            parts.append(f"{self.step_s:.1f} s a step")
            if tokens > first_tokens:
                parts.append(f"{(tokens - first_tokens) / seconds:,.0f} tokens a second")
            self.left_s = self.step_s * (total - step)
            parts.append(f"about {minutes(self.left_s)} left")
        return ", ".join(parts)

    def _answers(self, folder: Path, now: float) -> str:
        """How many answers there are, how fast they come, and the time left."""
        for file in ANSWERS:
            path = folder / file
            try:
                with path.open("rb") as lines:
                    count = sum(1 for _ in lines)
            except OSError:  # not there yet, or its folder has just been renamed
                continue
            # It is gone when all are there, while the stage may go on with other questions.
            if total := read_json(folder / PROGRESS).get(file):
                self.totals[path] = total
            first, since = self.first_answers.setdefault(path, (count, now))
            if path not in self.newest_answers or count != self.newest_answers[path][0]:
                self.newest_answers[path] = count, now
            seconds = self.newest_answers[path][1] - since
            if count > first and seconds > 0:
                return self._rate(path, folder, count, (count - first) / seconds)
        return ""

    def _rate(self, path: Path, folder: Path, count: int, speed: float) -> str:
        stage = folder.name.strip(".").removesuffix(".partial")
        total = self.totals.get(path)
        if not total:
            return f"{self.name:9} {stage}: {count} answers, {speed:.1f} a second"
        line = f"{self.name:9} {stage}: {count} of {total} answers, {speed:.1f} a second"
        left = total - count
        return f"{line}, about {minutes(left / speed)} left" if left else line


def _newest_loss(path: Path) -> dict[str, Any] | None:
    """The last entry with a loss; a line that is still being written is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not there yet, or its folder has just been renamed
        return None
    # The last lines may be an evaluation's, or of a step that is being written.
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            entry: dict[str, Any] = json.loads(line)
            if "loss" in entry:
                return entry
    return None


def minutes(seconds: float) -> str:
    """A time to read: in seconds below a minute, in hours from 100 minutes on."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

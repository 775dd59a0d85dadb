"""The run folder: where a run's results lie, whole or not at all, with a manifest that is enough to repeat it.

A stage writes into `.<name>.partial`, which is renamed to `<name>` when everything is there, so a killed run never
leaves half a result that looks whole. Each stage folder holds its own `stage.json`, with the checksums of what the stage has
left; `manifest.json` gathers them.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import checksums, disk_full_as_user_error, fingerprint, read_json, write_json
from tunebook.runs.machine import environment, halvings, peak_memory_gb, rank
from tunebook.runs.manifest import manifest

UNCHECKED = ("started.json", "stage.json", "checkpoints", "images")
"""What `stage.json` holds no checksums of: checkpoints have their own, images are many and their names come from their content."""


BUILT_ON = ("data", "sft", "pairs", "dpo")
"""The stages whose rows and weights others read."""


class Stage:
    """One stage's folder in a run: is it up to date, open it to write, record what came out.

    `settings` and `inputs` (JSON values) decide whether the stage is up to date: the same ones, the same result.
    """

    def __init__(self, recipe: Recipe, name: str, settings: dict[str, Any], inputs: dict[str, str]) -> None:
        self.recipe, self.name, self.inputs = recipe, name, inputs
        self.settings = json.loads(json.dumps(settings))
        self.dir = recipe.run_dir / name
        self.partial = self.dir.with_name(f".{self.dir.name}.partial")
        self.key = fingerprint({"settings": self.settings, "inputs": inputs})
        self.record: dict[str, Any] = {}

    @property
    def done(self) -> bool:
        """Whether a finished result of just these settings and inputs is there."""
        stage = read_json(self.dir / "stage.json")
        now = self._made_from() if stage.get("made_from") else {}
        return stage.get("key") == self.key and all(
            now.get(name, held) == held for name, held in stage.get("made_from", {}).items()
        )

    def _made_from(self) -> dict[str, str]:
        """What the stages that this one builds on hold now, by the hashes of their rows and weights. Settings and inputs may be the same and
        the result another: a server's answers, `--force` on a GPU."""
        names = {self.name.split("/")[1] if name == "adapter" else name for name in self.inputs}
        held = {
            n: read_json(self.recipe.run_dir / n / "stage.json").get("files", {})
            for n in names
            if n.partition("-")[0] in BUILT_ON
        }
        return {
            n: fingerprint({f: h for f, h in files.items() if f.endswith((".safetensors", ".parquet"))})
            for n, files in held.items()
            if files
        }

    def skip(self, force: bool) -> bool:
        """Whether there is nothing to do; says so. Ends first what a kill has left to do of a finished stage."""
        if force:
            return False
        if not rank() and (
            read_json(self.partial / "stage.json").get("key") == self.key or (self.done and self._unsettled)
        ):
            with _lock(self.recipe.run_dir):
                self._settle()
        if not self.done:
            return False
        print(f"{self.name} is up to date ({self.dir}); force runs it again")
        return True

    def await_rank_0(self) -> bool:
        """Of several processes, all but the first wait here until it has filled the stage; False in the first."""
        while (
            rank() and not self.done
        ):  # without a time limit: torchrun ends this process if the first one fails
            time.sleep(0.5)
        return bool(rank())

    @property
    def result(self) -> dict[str, Any]:
        """What the finished stage recorded."""
        return (rank() and self.record) or read_json(self.dir / "stage.json")

    @contextlib.contextmanager
    def open(self, resume: bool = True) -> Iterator[Path]:
        """Yield the folder to write into; on success it becomes the stage's folder and the manifest is renewed.

        With `resume`, what an interrupted run of the same settings left is kept; else the folder starts empty. Of several
        processes the first does all this and the others are only told the folder.

        Raises UserError when another process is at work in this run folder, and when the disk is full.
        """
        if rank():
            yield self.partial
            return
        resume = resume or halvings() > 0
        with disk_full_as_user_error(self.recipe.run_dir), _lock(self.recipe.run_dir):
            _recover(self.dir)
            if not (resume and read_json(self.partial / "started.json").get("key") == self.key):
                shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True, exist_ok=True)
            write_json(self.partial / "started.json", {"key": self.key})
            started = _now()
            yield self.partial
            write_json(self.partial / "stage.json", self._entry(started))
            self._settle()

    @property
    def _unsettled(self) -> bool:
        recorded = read_json(self.recipe.run_dir / "manifest.json").get("stages", {})
        return _old(self.dir).exists() or recorded.get(self.name, {}).get("key") != self.key

    def _settle(self) -> None:
        """What is left to do when the result is whole, from the `stage.json` in the partial folder on."""
        if (self.partial / "stage.json").exists():
            (self.partial / "started.json").unlink(missing_ok=True)
            _replace(self.partial, self.dir)
        _recover(self.dir)
        write_json(self.recipe.run_dir / "manifest.json", manifest(self.recipe.run_dir))

    def _entry(self, started: str) -> dict[str, Any]:
        return {
            "key": self.key,
            "command": command(self.recipe, self.name),
            "inputs": self.inputs,
            "made_from": self._made_from(),
            "settings": self.settings,
            "recipe": self.recipe.model_dump(mode="json"),
            "overrides": {k: {"recipe": old, "used": new} for k, (old, new) in self.recipe.overrides.items()},
            "seed": self.recipe.seed,
            "started": started,
            "ended": _now(),
            "peak_memory_gb": peak_memory_gb(),
            **environment(),
            **self.record,
            "files": checksums(self.partial, UNCHECKED),
        }


def finished_key(recipe: Recipe, name: str) -> str:
    """The key of a finished stage, for the stages that build on it; warns of one that was trained from another base than the recipe's, which
    may be a copy. Raises UserError that names the command when it is not there."""
    stage = read_json(recipe.run_dir / name / "stage.json")
    if "key" not in stage:
        raise UserError(
            f"{recipe.run_dir / name} holds no finished result: run `{command(recipe, name)}` first"
        )
    for key, trained in stage.get("settings", {}).get("model", {}).items():
        if key in ("base", "revision") and trained != (used := getattr(recipe.model, key)):
            _warn(
                f"{recipe.run_dir / name} was trained with model.{key} {trained}, not {used}: it is another model unless the weights are the same"
            )
    return str(stage["key"])


@functools.cache
def _warn(text: str) -> None:
    """Once in a process."""
    print(f"Warning: {text}")


def command(recipe: Recipe, name: str) -> str:
    """The command line that fills a stage's folder, with the recipe, run and overrides that are used here."""
    folder, _, model = name.partition("/")
    step, _, number = folder.partition("-")
    step = {"data": "prepare", "eval": "evaluate"}.get(step, step)
    return recipe.command(
        " ".join([step, *([model] if step == "evaluate" else []), *(["--round", number] if number else [])])
    )


def round_name(name: str, number: int) -> str:
    """The folder of a stage in a round of iterated DPO: `dpo`, `dpo-2`, `dpo-3`, ..."""
    return name if number == 1 else f"{name}-{number}"


def policy_name(number: int) -> str:
    """The stage whose model a round starts from: `sft`, then the round before."""
    return "sft" if number == 1 else round_name("dpo", number - 1)


@contextlib.contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """One process at a time writes in a run folder; the second is told who the first is."""
    run_dir.mkdir(parents=True, exist_ok=True)
    owner = run_dir / ".owner.json"
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            write_json(owner, {"pid": os.getpid(), "command": " ".join(Path(a).name for a in sys.argv[:2])})
            yield
    except Timeout:
        who = read_json(owner)
        message = f"{run_dir} is in use by process {who.get('pid', '?')} ({who.get('command', '?')}): wait for it, or choose another --run"
        raise UserError(message) from None


def _replace(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`, which may exist."""
    old = _old(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _recover(target: Path) -> None:
    """Mend what a kill in the middle of `_replace` left."""
    old = _old(target)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def stages(recipe: Recipe) -> list[str]:
    """What can be evaluated: `base`, `sft`, `dpo` and the later rounds of the recipe or the run folder."""
    rounds = max(recipe.pairs.rounds, len(list(recipe.run_dir.glob("dpo*/adapter"))))
    return ["base", "sft", *(round_name("dpo", number) for number in range(1, rounds + 1))]


def trained(recipe: Recipe) -> list[str]:
    """Those of `stages` that can be asked now: `base` and what has an adapter."""
    return [name for name in stages(recipe) if name == "base" or (recipe.run_dir / name / "adapter").exists()]


def adapter_key(recipe: Recipe, name: str) -> str:
    """The key of a stage's adapter, empty for `base`. Raises UserError when there is no such stage, or it is not trained."""
    if name not in stages(recipe):
        raise UserError(f"no stage {name!r}: choose from {', '.join(stages(recipe))}")
    return "" if name == "base" else finished_key(recipe, name)

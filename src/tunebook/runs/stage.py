"""A stage's folder in the run folder: its result lies there whole or not at all, and says how it was made.

A stage writes into `.<name>.partial`, which is renamed to `<name>` when everything is there, so a killed run
never leaves half a result that looks whole. Each stage folder holds its own `stage.json`, with the checksums
of what the stage has left; `manifest.json` gathers them.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.recipe.effects import differences, of_the_weights
from tunebook.recipe.errors import NotFinished, UserError, say_once
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import (
    ANSWERS_KEY,
    checksums,
    disk_full_as_user_error,
    file_hash,
    fingerprint,
    read_json,
    write_json,
)
from tunebook.runs.folders import locked, recover, replace, stepped_aside
from tunebook.runs.machine import environment, peak_memory_gb, rank
from tunebook.runs.manifest import manifest
from tunebook.runs.stages import model_names, parse_name

UNCHECKED = ("started.json", "stage.json", "checkpoints", "images")
"""What `stage.json` holds no checksums of.

Checkpoints have their own; images are many, and their names come from their content.
"""

RESULTS = (".safetensors", ".parquet")
"""The weights and rows of a stage, which later stages read."""


class Stage:
    """One stage's folder in a run: is it up to date, open it to write, record what came out.

    `settings` and `inputs` (JSON values) decide whether it is up to date: the same ones, the same result.
    """

    def __init__(self, recipe: Recipe, name: str, settings: dict[str, Any], inputs: dict[str, str]) -> None:
        self.recipe = recipe
        self.name = name
        self.inputs = inputs
        self.settings = json.loads(json.dumps(settings))  # as `stage.json` will hold them
        self.dir = recipe.run_dir / name
        self.partial = self.dir.with_name(f".{self.dir.name}.partial")
        self.key = fingerprint({"settings": self.settings, "inputs": inputs})
        self.record: dict[str, Any] = {}

    @property
    def done(self) -> bool:
        """Whether a finished result is there, of these inputs and all settings that it depends on."""
        stage = read_json(self.dir / "stage.json")
        if not self._is_same(stage):
            return False
        current_hashes = self.input_hashes()
        for name, recorded_hash in stage.get("made_from", {}).items():
            # An input that is gone by now says nothing against what was made from it.
            if current_hashes.get(name, recorded_hash) != recorded_hash:
                return False
        return True

    def _is_same(self, record: dict[str, Any]) -> bool:
        """Whether a record of this or an earlier run (`stage.json`, `started.json`) leads to the same result.

        The settings are compared, and not only the key, which changes with what merely watches.
        """
        if not record or record.get("key") == self.key:
            return bool(record)
        if "settings" not in record or record.get("inputs") != self.inputs:
            return False
        return of_the_weights(record["settings"]) == of_the_weights(self.settings)

    def input_hashes(self) -> dict[str, str]:
        """A hash of the rows and weights of each stage that this one builds on, by its name.

        Settings and inputs may be the same and the result another: a server's answers, `--force` on a GPU.
        """
        hashes = {}
        for name in self._stages_read():
            files = read_json(self.recipe.run_dir / name / "stage.json").get("files", {})
            if files:
                results = {file: digest for file, digest in files.items() if file.endswith(RESULTS)}
                hashes[name] = fingerprint(results)
        return hashes

    def _stages_read(self) -> list[str]:
        """The stages among the inputs; the others are files."""
        names = []
        for name in self.inputs:
            if name == "adapter":  # of the model that an evaluation is named after
                parsed = parse_name(self.name)
                if parsed is not None:
                    names.append(parsed.inside[0])
            elif name != self.name and parse_name(name) is not None:
                names.append(name)
        return names

    def skip(self, force: bool) -> bool:
        """Whether there is nothing to do; says so. First it ends what a kill has left of a finished stage."""
        if force:
            return False
        if rank() == 0:
            whole = self._is_same(read_json(self.partial / "stage.json"))
            if whole or (self.done and not self._is_published()):
                with locked(self.recipe.run_dir):
                    self._publish()
        if not self.done:
            return False
        print(f"{self.name} is up to date ({self.dir}); force runs it again")
        changed = differences(read_json(self.dir / "stage.json").get("settings", {}), self.settings)
        if changed:
            print(f"Its weights do not depend on what has changed: {', '.join(changed)}")
        return True

    def check(self, resume: bool = True) -> None:
        """Raises UserError for what `open` would refuse, before a model is loaded for nothing."""
        if rank():
            return
        with locked(self.recipe.run_dir):
            if resume:
                self._refuse_to_lose_work()

    def await_rank_0(self) -> bool:
        """Of several processes all but the first wait until it has filled the stage; False in the first."""
        while rank() and not self.done:
            # Without a time limit: torchrun ends this process if the first one fails.
            time.sleep(0.5)
        return rank() > 0

    @property
    def result(self) -> dict[str, Any]:
        """What the finished stage recorded."""
        if rank() and self.record:
            return self.record
        return read_json(self.dir / "stage.json")

    @contextlib.contextmanager
    def open(self, resume: bool = True) -> Iterator[Path]:
        """Yield the folder to write into; it becomes the stage's folder when the block succeeds.

        With `resume`, what an interrupted run has left is kept, if it leads to the same result; else the
        folder starts empty. Checkpoints of a run that is not gone on with lie in `.<name>.before` until the
        new result is whole. Of several processes the first does all this and the others are only told the
        folder.

        Raises UserError when another process is at work in this run folder, when the disk is full, and when
        with `resume` there are checkpoints of other settings.
        """
        if rank():
            yield self.partial
            return
        # Started again with smaller batches, it goes on even from what `--force` has begun.
        with disk_full_as_user_error(self.recipe.run_dir), locked(self.recipe.run_dir):
            # 1) what an earlier run has begun is gone on with, put aside or removed
            recover(self.dir)
            self._take_over(resume)
            self.partial.mkdir(parents=True, exist_ok=True)
            begun = {"key": self.key, "settings": self.settings, "inputs": self.inputs}
            write_json(self.partial / "started.json", begun)
            # 2) the stage does its work
            started = _now()
            yield self.partial
            # 3) from here on the result is whole: after a kill, `skip` does the rest
            write_json(self.partial / "stage.json", self._entry(started))
            self._publish()

    def _take_over(self, resume: bool) -> None:
        """Keep what an earlier run has left in the partial folder, put it aside, or remove it."""
        checkpoints = self.checkpoints()
        if resume and self._is_same(self._begun):
            changed = differences(self._begun.get("settings", self.settings), self.settings)
            if changed and checkpoints:
                print(f"{', '.join(changed)}: goes on from {checkpoints[-1].name}")
            return
        if not checkpoints:
            self._keep_answers(resume)
            return
        if resume:
            self._refuse_to_lose_work()
        # Days of work may lie there, and the new run may turn out worse.
        shutil.rmtree(self._before, ignore_errors=True)
        self.partial.rename(self._before)
        print(f"Starts over; the unfinished run lies in {self._before} until the new one is whole.")

    def _keep_answers(self, resume: bool) -> None:
        """Empty the partial folder, but for answers that say by a key what they depend on.

        Of a finished stage they are copied. Whether they are what is asked for now is seen when they are
        (`drop_other_answers`): to change `pairs.val` asks no model again.
        """
        if not resume:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        self.partial.mkdir(parents=True, exist_ok=True)
        kept = set()
        for key in self.partial.glob(f"*{ANSWERS_KEY}"):
            kept |= {key.name, key.name.removesuffix(ANSWERS_KEY)}
        for entry in self.partial.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in kept:
                entry.unlink()
        recorded = read_json(self.dir / "stage.json").get("files", {})
        for key in self.dir.glob(f"*{ANSWERS_KEY}"):
            file = key.with_name(key.name.removesuffix(ANSWERS_KEY))
            is_whole = file.exists() and recorded.get(file.name) == file_hash(file)
            if is_whole and key.name not in kept:
                shutil.copyfile(file, self.partial / file.name)
                # The key last: answers without one are not taken for others.
                shutil.copyfile(key, self.partial / key.name)

    @property
    def _begun(self) -> dict[str, Any]:
        """What an unfinished run was begun with; empty where there is none."""
        return read_json(self.partial / "started.json")

    def checkpoints(self) -> list[Path]:
        """The checkpoints of an unfinished run, by their step: a copied folder may have any times."""
        checkpoints = (self.partial / "checkpoints").glob("checkpoint-*")
        return sorted(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]))

    def _refuse_to_lose_work(self) -> None:
        """Raises UserError where there are checkpoints of settings that lead to another result."""
        begun, checkpoints = self._begun, self.checkpoints()
        if not checkpoints or self._is_same(begun):
            return
        changed = differences(begun.get("settings", self.settings), self.settings)
        if begun.get("inputs", self.inputs) != self.inputs:
            changed.append("what it builds on has changed")
        reason = ", ".join(changed[:3]) or "other settings"
        raise UserError(
            f"an unfinished {self.name} is there, up to {checkpoints[-1].name}, and what has changed "
            f"decides the weights ({reason}). Start over with --fresh (in a notebook: fresh = True), "
            "keep both with --run NAME, or set it back to go on"
        )

    @property
    def _before(self) -> Path:
        """Where an unfinished run lies that was started over."""
        return self.dir.with_name(f".{self.dir.name}.before")

    def _is_published(self) -> bool:
        """Whether nothing is left to do: the manifest knows the result, and the one before it is removed."""
        recorded = read_json(self.recipe.run_dir / "manifest.json").get("stages", {})
        key = read_json(self.dir / "stage.json").get("key")
        return recorded.get(self.name, {}).get("key") == key and not stepped_aside(self.dir).exists()

    def _publish(self) -> None:
        """Put a whole result in its place and into the manifest. Works again after a kill at any point."""
        if (self.partial / "stage.json").exists():
            (self.partial / "started.json").unlink(missing_ok=True)
            shutil.rmtree(self._before, ignore_errors=True)
            replace(self.partial, self.dir)
        recover(self.dir)
        write_json(self.recipe.run_dir / "manifest.json", manifest(self.recipe.run_dir))

    def add_to_record(self, record: dict[str, Any]) -> None:
        """Add what was found out later to the record of the finished stage, and to the manifest."""
        path = self.dir / "stage.json"
        with locked(self.recipe.run_dir):
            write_json(path, read_json(path) | record)
            self._publish()

    def _entry(self, started: str) -> dict[str, Any]:
        overrides = {key: {"recipe": old, "used": new} for key, (old, new) in self.recipe.overrides.items()}
        return {
            "key": self.key,
            "command": command(self.recipe, self.name),
            "inputs": self.inputs,
            "made_from": self.input_hashes(),
            "settings": self.settings,
            "recipe": self.recipe.model_dump(mode="json"),
            "overrides": overrides,
            "seed": self.recipe.seed,
            "started": started,
            "ended": _now(),
            "peak_memory_gb": peak_memory_gb(),
            **environment(),
            **self.record,  # what the stage itself has to say: rows, metrics, audits
            "files": checksums(self.partial, UNCHECKED),
        }


def finished_key(recipe: Recipe, name: str) -> str:
    """The key of a finished stage, for the stages that build on it.

    Warns of one that was trained from another base than the recipe's, which may be a copy. Raises UserError
    that names the command when there is no finished result.
    """
    folder = recipe.run_dir / name
    stage = read_json(folder / "stage.json")
    if "key" not in stage:
        raise NotFinished(f"{folder} holds no finished result: run `{command(recipe, name)}` first")
    trained = stage.get("settings", {}).get("model", {})
    for key in ("base", "revision"):
        used = getattr(recipe.model, key)
        if key in trained and trained[key] != used:
            say_once(
                f"Warning: {folder} was trained with model.{key} {trained[key]}, not {used}: "
                "it is another model unless the weights are the same"
            )
    return str(stage["key"])


def adapter_key(recipe: Recipe, model: str) -> str:
    """The key of a model's adapter, empty for `base`.

    Raises UserError when there is no such model, or it is not trained.
    """
    names = model_names(recipe)
    if model not in names:
        raise UserError(f"no stage {model!r}: choose from {', '.join(names)}")
    if model == "base":
        return ""
    return finished_key(recipe, model)


def command(recipe: Recipe, name: str) -> str:
    """The command line that fills a stage's folder, with the recipe, run and overrides that are used here."""
    parsed = parse_name(name)
    if parsed is None:
        return recipe.command(name)
    words = [parsed.spec.command]
    if parsed.spec.name == "eval":
        words += parsed.inside
    if parsed.round > 1:
        words += ["--round", str(parsed.round)]
    return recipe.command(" ".join(words))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

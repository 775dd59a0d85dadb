"""The run folder: where a run's results lie, whole or not at all, with a manifest that is enough to repeat it.

A stage writes into `.<name>.partial`, which is renamed to `<name>` when everything is there, so a killed run never
leaves half a result that looks whole. Each stage folder holds its own `stage.json`, with the checksums of what the stage has
left; `manifest.json` gathers them.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunebook.recipe import ROOT, Recipe, UserError

PACKAGES = ("tunebook", "unsloth", "unsloth_zoo", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "math-verify")
UNCHECKED = ("started.json", "stage.json", "checkpoints", "images")
"""What `stage.json` holds no checksums of: checkpoints have their own, images are many and their names come from their content."""
FULL = re.compile(r"No space left|disk is full|quota exceeded|File too large|PytorchStreamWriter failed writing|unexpected pos \d+ vs", re.I)
"""What safetensors, tokenizers, SQLite and torch (the last two) say when a file can't grow: they raise no OSError."""


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
        return stage.get("key") == self.key and all(now.get(name, held) == held for name, held in stage.get("made_from", {}).items())

    def _made_from(self) -> dict[str, str]:
        """What the stages that this one builds on hold now, by the hashes of their rows and weights. Settings and inputs may be the same and
        the result another: a server's answers, `--force` on a GPU."""
        names = {self.name.split("/")[1] if name == "adapter" else name for name in self.inputs}
        held = {n: read_json(self.recipe.run_dir / n / "stage.json").get("files", {}) for n in names if n.partition("-")[0] in BUILT_ON}
        return {n: fingerprint({f: h for f, h in files.items() if f.endswith((".safetensors", ".parquet"))}) for n, files in held.items() if files}

    def skip(self, force: bool) -> bool:
        """Whether there is nothing to do; says so. Ends first what a kill has left to do of a finished stage."""
        if force:
            return False
        if not rank() and (read_json(self.partial / "stage.json").get("key") == self.key or (self.done and self._unsettled)):
            with _lock(self.recipe.run_dir):
                self._settle()
        if not self.done:
            return False
        print(f"{self.name} is up to date ({self.dir}); force runs it again")
        return True

    def await_rank_0(self) -> bool:
        """Of several processes, all but the first wait here until it has filled the stage; False in the first."""
        while rank() and not self.done:  # without a time limit: torchrun ends this process if the first one fails
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
        with told_when_full(self.recipe.run_dir), _lock(self.recipe.run_dir):
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


def rank() -> int:
    """This process's number among those that torchrun started; 0 when it is the only one. Rank 0 writes and reports."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def halvings() -> int:
    """How many times `launch` has started this command again with half the per-device batch, because memory ran out."""
    return int(os.environ.get("TUNEBOOK_HALVINGS", 0))


def finished_key(recipe: Recipe, name: str) -> str:
    """The key of a finished stage, for the stages that build on it; warns of one that was trained from another base than the recipe's, which
    may be a copy. Raises UserError that names the command when it is not there."""
    stage = read_json(recipe.run_dir / name / "stage.json")
    if "key" not in stage:
        raise UserError(f"{recipe.run_dir / name} holds no finished result: run `{command(recipe, name)}` first")
    for key, trained in stage.get("settings", {}).get("model", {}).items():
        if key in ("base", "revision") and trained != (used := getattr(recipe.model, key)):
            _warn(f"{recipe.run_dir / name} was trained with model.{key} {trained}, not {used}: it is another model unless the weights are the same")
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
    return recipe.command(" ".join([step, *([model] if step == "evaluate" else []), *(["--round", number] if number else [])]))


def checksums(folder: Path, without: Iterable[str] = ()) -> dict[str, str]:
    """The hash of each file in a folder by its path in it; `without` names what is left out at the top of the folder."""
    top = (p for p in sorted(folder.iterdir()) if p.name not in without)
    files = (f for p in top for f in ([p] if p.is_file() else sorted(p.rglob("*"))) if f.is_file())
    return {f.relative_to(folder).as_posix(): file_hash(f) for f in files}


def intact(path: Path) -> Path:
    """The same path, of a file or folder in a finished stage's folder, if it is as the stage has left it. What no stage has recorded
    passes.

    Raises UserError that names a file which is damaged or missing, and the command that makes it again.
    """
    folder = next((p for p in (path, *path.parents) if (p / "stage.json").exists()), path)
    stage = read_json(folder / "stage.json")
    for name, known in stage.get("files", {}).items():
        file = folder / name
        if file.is_relative_to(path) and not (file.is_file() and file_hash(file) == known):
            what = "damaged" if file.exists() else "missing"
            raise UserError(f"{file} is {what}: it is not what the stage has left; `{stage['command']} --force` makes it again")
    return path


def file_hash(path: Path) -> str:
    """A short hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextlib.contextmanager
def told_when_full(where: Path) -> Iterator[None]:
    """Turns what a full disk, a full quota or a limit on the size of files raises (ENOSPC, EDQUOT, EFBIG, `FULL`) into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause and not (getattr(cause, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or FULL.search(str(cause))):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        place = getattr(cause, "filename", None) or where
        raise UserError(f"no space left on the disk of {place}; free some and run the same command: it goes on from there") from None


def round_name(name: str, number: int) -> str:
    """The folder of a stage in a round of iterated DPO: `dpo`, `dpo-2`, `dpo-3`, ..."""
    return name if number == 1 else f"{name}-{number}"


def policy_name(number: int) -> str:
    """The stage whose model a round starts from: `sft`, then the round before."""
    return "sft" if number == 1 else round_name("dpo", number - 1)


def manifest(run_dir: Path) -> dict[str, Any]:
    """Every finished stage's record by name: enough to repeat the run."""
    found = sorted(run_dir.glob("*/stage.json")) + sorted(run_dir.glob("e*/*/stage.json")) + sorted(run_dir.glob("bench/*/*/stage.json"))
    return {"run": run_dir.name, "stages": {str(p.parent.relative_to(run_dir)): read_json(p) for p in found}}


def environment() -> dict[str, Any]:
    """Code, versions and hardware that a result depends on."""
    lock = ROOT / "uv.lock"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    torch = sys.modules.get("torch")  # never imported just to ask
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch and torch.cuda.is_available() else []
    return {
        "git": _git(),
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "hardware": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "memory_gb": round(memory, 1), "gpus": gpus},
    }


def free_ram() -> int:
    """Free bytes of the machine, within the limit of its control group."""
    import psutil

    free = [psutil.virtual_memory().available]
    root = Path("/sys/fs/cgroup")
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            free.append(int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):  # another version of control groups, or `max`
            continue
    return int(min(free))


def peak_memory_gb() -> dict[str, float]:
    """The process's highest resident memory so far and, on a GPU, the highest allocation there."""
    peak = {"process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return peak


def fingerprint(value: Any) -> str:
    """A short stable hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never half of it."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


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


def _git() -> dict[str, Any]:
    def git(*args: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    with contextlib.suppress(OSError):
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    return {"commit": None, "dirty": None}


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

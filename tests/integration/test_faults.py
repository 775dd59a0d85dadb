"""Faults: kills at random moments, full disks, damaged files, Ctrl-C, dead kernels.

No work is lost, and every command ends as if nothing had been.

The commands are the real ones from argument parsing to exit code, each in a process of its own; only `import
unsloth` is shared: the processes are forked from one that has done it (`faults.py`). Models are tiny, all
settings else those of the default recipe.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
import tiny_text
import whole_recipe
import yaml

from tunebook.generation.generate import read_records
from tunebook.recipe.files import ROOT
from tunebook.runs.files import read_json, write_json

SCALE, STEPS = 15, 40
"""Of the tiny model's embeddings, and of SFT: enough to learn to answer 7 or 8."""
SEED = int(os.environ.get("TUNEBOOK_TEST_SEED", "0"))
KILLS = {"prepare": 4, "sft": 4, "pairs": 2, "dpo": 3, "evaluate": 2, "export": 1, "run": 2}
"""`clean` is killed in test_clean.py."""


class World:
    """A recipe on a tiny model, in which each command takes seconds, and an undisturbed run of all of it."""

    def __init__(self, server: str, folder: Path, embedded: Path) -> None:
        self.server = server
        self.folder = folder
        self.runs = folder / "runs"
        self.logs = 0
        self.seconds: dict[str, float] = {}
        """How long each step takes when nothing disturbs it."""
        self.changes: dict[str, int] = {}
        """How often each step changes a file."""
        self.env = {
            "TUNEBOOK_RUNS": str(self.runs),
            "OMP_NUM_THREADS": "1",
            **faults.kernelspec(folder / "jupyter", server),
        }
        made = "qwen3", str(folder / "model"), str(embedded), str(SCALE)
        assert self.start("python", tiny_text.__file__, *made).wait() == 0
        self.recipe = folder / "tiny.yaml"
        self.recipe.write_text(yaml.safe_dump(recipe(folder)))

    def start(self, *argv: str, **how) -> faults.Command:
        """A command under way."""
        self.logs += 1
        return faults.Command(
            self.server,
            *argv,
            log=self.folder / f"{self.logs:03}.log",
            env=self.env | how.pop("env", {}),
            **{"cwd": ROOT, **how},
        )

    def run(self, step: str, *argv: str, run: str = "straight", **how) -> faults.Command:
        """A command of the recipe that has ended."""
        command = self.start(step, *argv, "--recipe", str(self.recipe), "--run", run, **how)
        command.wait()
        return command

    def copy(self, name: str, *without: str) -> Path:
        """The undisturbed run up to the step `first`, and then the command, killed again and again.

        Each time it starts from what the last kill has left. Then it may end, with nothing left over.
        """
        shutil.rmtree(self.runs / name, ignore_errors=True)
        return shutil.copytree(
            self.runs / "straight",
            self.runs / name,
            ignore=shutil.ignore_patterns(".lock", ".owner.json", *without),
        )


def recipe(folder: Path) -> dict:
    """24 rows that say 7 or 8, which of them is not to be known: sampled answers are right and wrong."""
    golds = [str(7 + (n * n // 3) % 2) for n in range(36)]
    rows = [
        {"prompt": f"How many umbrellas has room {n}?", "completion": f"\\boxed{{{g}}}", "answer": g}
        for n, g in enumerate(golds)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = whole_recipe.content("smollm2-math") | {"name": "tiny"}
    base = {
        "base": str(folder / "model"),
        "dtype": "float32",
        "chat_template": "prompt/chatml.jinja",
        "eos_token": "<|im_end|>",
    }
    content["model"] |= base
    content["data"] |= {"for_pairs": 0, "near_duplicate": 1.0, "system_prompt": None}
    content["data"]["sources"] = [
        {"format": "chat", "path": str(folder / "rows.jsonl"), "val": 0.1, "test": 0.25}
    ]
    trained = {"per_device_train_batch_size": 4, "eval_strategy": "no", "logging_steps": 1, "save_steps": 4}
    content["sft"] |= trained | {"max_steps": STEPS, "learning_rate": 2e-2}
    content["dpo"] |= trained | {"max_steps": 12, "learning_rate": 1e-3}
    content["pairs"] |= {
        "prompts": 12,
        "samples": 4,
        "temperature": 0.6,
        "max_new_tokens": 12,
        "batch_size": 6,
        "val": 0,
        "max_length_ratio": 3,
    }
    content["evaluate"] |= {"max_new_tokens": 12, "batch_size": 3}
    content["export"] |= {"to": ["adapter"], "items": 2}
    return content


@pytest.fixture(scope="module")
def world(tmp_path_factory, embedded, fork_server):
    made = World(fork_server, tmp_path_factory.mktemp("faults"), embedded)
    for step in ("prepare", "sft", "pairs", "dpo", "evaluate"):
        start = time.monotonic()
        command = made.run(step, watch=str(made.runs))
        made.seconds[step] = time.monotonic() - start
        assert command.code == 0, command.text
        made.changes[step] = int(command.text.rpartition("changes: ")[2])
    return made


def files(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """The contents of a folder's files by their paths in it."""
    paths = [path for path in sorted(folder.rglob(pattern)) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def rows_alike(first: Path, second: Path) -> bool:
    return files(first, "*.parquet") == files(second, "*.parquet")


def weights_alike(first: Path, second: Path) -> bool:
    from safetensors.torch import load_file

    weights = load_file(first / "adapter" / "adapter_model.safetensors")
    others = load_file(second / "adapter" / "adapter_model.safetensors")
    differences = [tensor.sub(others[name]).abs().max() for name, tensor in weights.items()]
    return weights.keys() == others.keys() and max(differences) < 1e-5


def loss_trace(folder: Path) -> dict[int, float]:
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def trained_alike(first: Path, second: Path) -> bool:
    same_trace = loss_trace(first) == pytest.approx(loss_trace(second), abs=1e-5)
    return same_trace and weights_alike(first, second)


def answers_in(folder: Path) -> dict[str, dict[int, str]]:
    """The answers of each evaluated model by the numbers of their items."""
    answers = {}
    for path in files(folder, "predictions.jsonl"):
        answers[path] = {record["index"]: record["answer"] for record in read_records(folder / path)}
    return answers


def answered_alike(first: Path, second: Path) -> bool:
    answers = answers_in(first)
    return answers == answers_in(second) and all(len(of_model) == 8 for of_model in answers.values())


def exported_alike(first: Path, second: Path) -> bool:
    """An adapter is exported as DPO has left it."""
    return weights_alike(first.with_name("dpo"), second)


STAGES: dict[str, tuple[str, Callable[[Path, Path], bool]]] = {
    "prepare": ("data", rows_alike),
    "sft": ("sft", trained_alike),
    "pairs": ("pairs", rows_alike),
    "dpo": ("dpo", trained_alike),
    "evaluate": ("eval", answered_alike),
    "export": ("export", exported_alike),
}
"""What each command fills, and when two results of it are the same."""
LATER = {step: [folder for folder, _ in list(STAGES.values())[i:]] for i, step in enumerate(STAGES)}


def left_over(run: Path) -> list[str]:
    return [str(p) for p in run.rglob(".*") if p.name not in (".lock", ".owner.json")]


def kill(
    world: World,
    draw: random.Random,
    number: int,
    start: Callable[..., faults.Command],
    seconds: float,
    changes: int,
) -> str | None:
    """Start a command and kill it, by turns by the clock and at a change of a file.

    Returns when that was, or None if it ended before.
    """
    if number % 2 and changes:
        change = draw.randint(1, changes)
        command = start(watch=str(world.runs), kill_at=change)
        moment: str | None = f"change {change}"
    else:
        after = draw.uniform(0.1, 0.95) * seconds
        command = start()
        if command.poll(after) is None:
            os.kill(command.pid, signal.SIGKILL)
        moment = f"{after:.2f} s" if command.wait() else None
    assert command.wait() in (0, -signal.SIGKILL), command.text
    return moment


def kill_and_finish(world: World, first: str, seconds: float, changes: int, *argv: str) -> Path:
    """The undisturbed run up to the step `first`, and then the command, killed again and again.

    Each time it starts from what the last kill has left. Then it may end, with nothing left over.
    """
    draw, killed = random.Random(f"{SEED}/{argv[0]}"), list[str]()
    folder = world.copy("killed", *LATER[first])

    def start(**how) -> faults.Command:
        (folder / "manifest.json").unlink(missing_ok=True)
        return world.start(*argv, "--recipe", str(world.recipe), "--run", "killed", **how)

    while len(killed) < KILLS[argv[0]]:
        if moment := kill(world, draw, len(killed), start, seconds, changes):
            killed.append(moment)
        else:  # what was left was done before the moment came
            folder = world.copy("killed", *LATER[first])
    print(argv, killed)
    done = start()
    assert done.wait() == 0, done.text
    assert left_over(folder) == []
    return folder


def keys_in(run: Path) -> dict[str, str]:
    """The keys of the stages in a run's manifest."""
    stages = read_json(run / "manifest.json")["stages"]
    return {name: record["key"] for name, record in stages.items()}


@pytest.mark.parametrize("step", STAGES)
def test_killed_again_and_again_it_ends_as_if_undisturbed(world, step):
    """At random moments."""
    folder = kill_and_finish(world, step, world.seconds.get(step, 5), world.changes.get(step, 0), step)
    name, alike = STAGES[step]
    assert alike(world.runs / "straight" / name, folder / name)
    recorded = keys_in(folder)
    expected = keys_in(world.runs / "straight")
    for stage in list(expected):
        if stage.partition("/")[0] in LATER[step][1:]:
            del expected[stage]  # of a later command
    assert any(stage.startswith(name) for stage in recorded) and recorded.items() >= expected.items()


def test_tunebook_run_ends_as_if_undisturbed_too(world):
    """Its notebooks' processes end with it."""
    folder = kill_and_finish(world, "prepare", 2 * world.seconds["prepare"], 0, "run", "--until", "prepare")
    assert STAGES["prepare"][1](world.runs / "straight" / "data", folder / "data")
    assert '"status": "completed"' in (folder / "notebooks" / "01_data_prep.ipynb").read_text()


@pytest.fixture
def disk(tmp_path):
    """A function that leaves so many bytes of a small disk free, and the folder where it is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode:
        pytest.skip("may not mount a small disk here (the limit on the size of a file stands for it)")

    def leave(size: int) -> None:
        filler = folder / "filler"
        filler.unlink(missing_ok=True)
        if size:
            filler.write_bytes(b"0" * (shutil.disk_usage(folder).free - size))

    yield folder, leave
    subprocess.run(["umount", "-l", str(folder)], check=True)


FREE = {"prepare": 0.02, "sft": 6.0, "pairs": 0.012, "evaluate": 0.012}
"""Megabytes that are free when a command starts.

Too few for Parquet files, for the second checkpoint, for answers.
"""
FULL = re.compile(
    r"tunebook: no space left on the disk of .*; free some and run the same command: it goes on from there"
)


def refused(command: faults.Command, line: re.Pattern[str]) -> None:
    """It ended with exit code 2 and one line, this one."""
    assert command.code == 2 and "Traceback" not in command.text, command.text[-3000:]
    (said,) = [text for text in command.text.splitlines() if text.startswith("tunebook: ")]
    assert line.fullmatch(said), said


@pytest.mark.parametrize("step", FREE)
def test_a_full_disk_is_one_line_and_with_space_the_command_goes_on(world, disk, step):
    mount, leave = disk
    shutil.copytree(world.copy("full", *LATER[step]), mount / "runs" / "straight")
    before = files(mount)
    leave(int(FREE[step] * 1e6))
    refused(world.run(step, env={"TUNEBOOK_RUNS": str(mount / "runs")}), FULL)
    name, alike = STAGES[step]
    assert not (mount / "runs" / "straight" / name / "stage.json").exists()
    assert {n: content for n, content in files(mount).items() if n in before} == before
    leave(0)
    command = world.run(step, env={"TUNEBOOK_RUNS": str(mount / "runs")})
    assert command.code == 0, command.text
    assert (
        alike(world.runs / "straight" / name, mount / "runs" / "straight" / name) and left_over(mount) == []
    )


@pytest.mark.parametrize(("step", "limit"), [("prepare", 1500), ("sft", 100_000), ("evaluate", 1000)])
def test_so_is_a_limit_on_the_size_of_files(world, step, limit):
    """EFBIG instead of ENOSPC: by Python, Arrow and safetensors."""
    folder = world.copy("full", *LATER[step])
    refused(world.run(step, run="full", file_size=limit), FULL)
    assert not (folder / STAGES[step][0] / "stage.json").exists()


def test_each_library_says_it_in_its_own_words(world, tmp_path):
    script = tmp_path / "write.py"
    script.write_text("""
import sys, pathlib, safetensors.torch, torch, pyarrow.parquet
from transformers import AutoTokenizer
from tunebook.recipe.errors import UserError
from tunebook.runs.files import disk_full_as_user_error
big, tokenizer = torch.randn(200_000), AutoTokenizer.from_pretrained(sys.argv[1])
for write in (
    lambda: safetensors.torch.save_file({"a": big}, "a.safetensors"),
    lambda: torch.save({"a": big}, "a.pt"),
    lambda: pyarrow.parquet.write_table(pyarrow.table({"a": big.numpy()}), "a.parquet"),
    lambda: tokenizer.save_pretrained("tokenizer"),
    lambda: pathlib.Path("a.txt").write_text("a" * 1_000_000),
):
    try:
        with disk_full_as_user_error(pathlib.Path()):
            write()
    except UserError as error:
        print(error)
""")
    command = world.start("python", str(script), str(world.folder / "model"), cwd=tmp_path, file_size=100_000)
    assert command.wait() == 0 and command.text.count("no space left on the disk of .;") == 5, command.text


def test_a_second_writer_is_refused_and_readers_are_not(world):
    folder = world.copy("busy", "dpo", "eval", "export")
    first = world.start("dpo", "--recipe", str(world.recipe), "--run", "busy")
    while not (folder / ".dpo.partial" / "started.json").exists():
        assert first.poll(0.01) is None, first.text
    os.kill(first.pid, signal.SIGSTOP)
    refused(
        world.run("pairs", "--force", run="busy"),
        re.compile(rf"tunebook: .* is in use by process {first.pid} \(tunebook dpo\): wait for it, .*"),
    )
    report = world.start("report", str(folder))
    assert report.wait() == 0, report.text
    assert (
        world.run("chat", "--question", "How many umbrellas has room 3?", "--model", "sft", run="busy").code
        == 0
    )
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 0, first.text


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("file", "harm", "reader", "maker"),
    [
        ("data/train.parquet", cut, "sft", "prepare"),
        ("pairs/train.parquet", flip, "dpo", "pairs"),
        ("sft/adapter/adapter_model.safetensors", flip, "pairs", "sft"),
        ("sft/adapter/adapter_model.safetensors", cut, "dpo", "sft"),
        ("sft/adapter/adapter_config.json", Path.unlink, "evaluate", "sft"),
    ],
)
def test_a_damaged_file_is_named_with_the_command_that_makes_it_again(world, file, harm, reader, maker):
    folder = world.copy("damaged", *LATER[reader])
    harm(folder / file)
    options = re.escape(f"--recipe {world.recipe} --run straight --force")
    refused(
        world.run(reader, run="damaged"),
        re.compile(
            rf"tunebook: .*{file} is (damaged|missing): .*; "
            rf"`uv run tunebook {maker} {options}` makes it again"
        ),
    )


def test_damaged_answers_are_not_counted(world):
    folder = world.copy("damaged")
    flip(folder / "eval" / "sft" / "predictions.jsonl")
    for command in (
        world.start("report", str(folder)),
        world.start("evaluate", "--recipe", str(world.recipe), "--run", "damaged"),
    ):
        command.wait()
        refused(
            command,
            re.compile(
                r"tunebook: .*eval/sft/predictions.jsonl is damaged: .*; "
                r"`uv run tunebook evaluate sft --recipe .* --force` makes it again"
            ),
        )


def interrupted(world: World, folder: Path, name: str) -> None:
    """A run whose training was cut short after its last checkpoint, so that all of them are there."""
    (folder / name).rename(folder / f".{name}.partial")
    for part in ("stage.json", "adapter"):
        path = folder / f".{name}.partial" / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    key = read_json(world.runs / "straight" / name / "stage.json")["key"]
    (folder / f".{name}.partial" / "started.json").write_text(json.dumps({"key": key}))


def newest_first(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("checkpoint-*"), key=lambda p: -int(p.name.partition("-")[2]))


@pytest.mark.parametrize(
    ("name", "file", "harm"), [("sft", "optimizer.pt", flip), ("dpo", "adapter_model.safetensors", cut)]
)
def test_a_damaged_checkpoint_is_left_out(world, name, file, harm):
    folder = world.copy("checkpoints", *LATER[name][1:])
    interrupted(world, folder, name)
    newest, older = newest_first(folder / f".{name}.partial" / "checkpoints")
    harm(newest / file)
    command = world.run(name, run="checkpoints")
    assert command.code == 0, command.text
    assert (
        f"{newest.name} is damaged ({file}) and left out." in command.text
        and f"Going on from {older.name}" in command.text
    )
    assert trained_alike(world.runs / "straight" / name, folder / name)


def test_the_clock_does_not_decide_which_checkpoint_is_the_oldest(world):
    """It was a year ahead when they were written."""
    folder = world.copy("clock", *LATER["pairs"])
    interrupted(world, folder, "sft")
    newest, older = newest_first(folder / ".sft.partial" / "checkpoints")
    shutil.rmtree(newest)
    os.utime(older, (time.time() + 3e7,) * 2)
    assert world.run("sft", run="clock").code == 0
    assert [p.name for p in newest_first(folder / "sft" / "checkpoints")] == [newest.name, older.name]


@pytest.mark.parametrize("step", ["sft", "dpo", "pairs", "evaluate"])
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(world, step):
    folder = world.copy("stopped", *LATER[step])
    name, alike = STAGES[step]
    progress = {
        "sft": ".sft.partial/metrics.jsonl",
        "dpo": ".dpo.partial/metrics.jsonl",
        "pairs": ".pairs.partial/samples.jsonl",
    }
    file = folder / progress.get(step, "eval/.base.partial/predictions.jsonl")
    command = world.start(step, "--recipe", str(world.recipe), "--run", "stopped")
    while not (folder / "eval" / "base").exists() and (
        not file.exists() or len(file.read_text().splitlines()) < 3
    ):
        assert command.poll(0.005) is None, command.text
    os.kill(command.pid, signal.SIGINT)
    start = time.monotonic()
    assert command.wait() == 130 and time.monotonic() - start < 10, command.text
    said = command.text.splitlines()
    kept = "what was saved" if step not in ("sft", "dpo") else rf"checkpoint-\d+ of {step}"
    words = re.compile(rf"tunebook: interrupted; {kept} is kept\. Go on with: uv run tunebook ")
    line = next(text for text in said if words.match(text))
    assert "Traceback" not in command.text and not (folder / name / "stage.json").exists()
    if step in ("sft", "dpo"):
        steps = {e["step"] for e in map(json.loads, file.read_text().splitlines()) if "loss" in e}
        saved = max(int(p.name.partition("-")[2]) for p in file.parent.glob("checkpoints/checkpoint-*"))
        assert saved == max(steps) < (STEPS if step == "sft" else 12)
    again = world.start(*shlex.split(line.partition("Go on with: uv run tunebook ")[2]))
    assert again.wait() == 0, again.text
    assert step not in ("sft", "dpo") or f"Going on from checkpoint-{saved}" in again.text
    assert alike(world.runs / "straight" / name, folder / name) and left_over(folder) == []


def test_ctrl_c_does_not_wait_for_a_server_that_is_silent(world):
    world.copy("silent", *LATER["pairs"])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        command = world.start(
            "pairs",
            "--recipe",
            str(world.recipe),
            "--run",
            "silent",
            "--set",
            f"pairs.server={{url: '{url}', model: m}}",
        )
        silent.accept()
        time.sleep(1)  # until it waits for answers: while threads start, an interruption can be lost
        os.kill(command.pid, signal.SIGINT)
        assert command.wait(10) == 130 and "Go on with: uv run tunebook pairs" in command.text


def test_a_dead_kernel_is_one_line_with_notebook_and_cell(world, tmp_path):
    for name in ("notebooks", "configs", "prompt"):
        shutil.copytree(ROOT / name, tmp_path / "home" / name)
    path = tmp_path / "home" / "notebooks" / "01_data_prep.ipynb"
    notebook = json.loads(path.read_text())
    last = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][2]
    last["source"] = ["import os, signal\n", "os.kill(os.getpid(), signal.SIGKILL)"]
    path.write_text(json.dumps(notebook))
    command = world.run(
        "run", "--until", "prepare", run="dead", env={"TUNEBOOK_HOME": str(tmp_path / "home")}
    )
    refused(
        command,
        re.compile(
            r"tunebook: .*/dead/notebooks/01_data_prep.ipynb in \".+\": the notebook's process was "
            "killed .*"
        ),
    )
    again = world.run("run", "--until", "prepare", run="dead")
    assert again.code == 0, again.text


def test_a_run_is_repeated_from_its_manifest(world):
    """Through the notebooks; what the run did not do is not done."""
    folder = world.copy("short", "pairs", "dpo")
    record = read_json(folder / "manifest.json")
    kept = {
        name: stage for name, stage in record["stages"].items() if name not in ("pairs", "dpo", "eval/dpo")
    }
    write_json(folder / "manifest.json", record | {"stages": kept})
    command = world.start("run", "--from-manifest", str(folder / "manifest.json"), "--run", "again")
    assert command.wait() == 0, command.text
    table = dict(
        line.strip("| ").split(" | ", 1) for line in command.text.splitlines() if line.startswith("| ")
    )
    assert table.pop("what").endswith("short | again") and table.pop("---")
    assert {
        "data",
        "sft: loss by step",
        "sft: weights",
        "eval/sft: answers",
        "versions",
        "hardware",
        "stages",
    } <= table.keys()
    assert {name: said for name, said in table.items() if not said.startswith("identical")} == {}
    assert trained_alike(folder / "sft", world.runs / "again" / "sft")


def test_training_in_an_odd_place_at_an_odd_time(world, tmp_path):
    folder = tmp_path / "ein Ördner, с пробелом"
    folder.mkdir()
    env = {"TUNEBOOK_RUNS": "läufe hier", "TZ": "Pacific/Apia", "HOME": "/proc/nowhere", "LC_ALL": "C"}
    command = world.run("sft", cwd=folder, env=env)
    assert command.code == 0, command.text
    assert trained_alike(world.runs / "straight" / "sft", folder / "läufe hier" / "straight" / "sft")

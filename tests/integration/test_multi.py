"""Several processes train what one would, and one that dies ends all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from traces import close, four_rows_a_step, trace

from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.training import launch


@pytest.fixture
def recipe(tiny_recipe, tmp_path) -> Path:
    return four_rows_a_step(tiny_recipe, tmp_path)


def two(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`tunebook ...` in two processes, as the shell scripts start it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "RANK")}
    torchrun = "-m tunebook.training.launch --standalone --nproc-per-node 2 -m tunebook"
    return subprocess.Popen(
        [sys.executable, *torchrun.split(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=kept | environment,
        cwd=ROOT,
    )


@pytest.mark.parametrize("command", ["sft", "dpo"])
def test_the_scripts_start_torchrun_with_the_commands_own_options(tmp_path, monkeypatch, command):
    """`--run` goes to the command: torchrun's parser would take it for one of its own."""
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    uv.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / f"train_{command}.sh"), "--run", "two", "--set", "a=b c"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "NPROC_PER_NODE": "4"},
    )
    line = done.stdout.splitlines()
    start = line.index("tunebook.training.launch") + 1
    assert line[start - 2] == "-m"
    import torch.distributed.run

    started = []
    monkeypatch.setattr(torch.distributed.run, "run", started.append)
    launch.main(line[start:])
    (options,) = started
    assert options.standalone and options.nproc_per_node == "4"
    assert options.module and options.training_script == "tunebook"
    assert options.training_script_args == [command, "--run", "two", "--set", "a=b c"]


# Stand-ins for two machines of a Slurm cluster: `srun` starts its command for each of them and hands SIGTERM
# on, twice, as Slurm and `uv run` together do. Only the rows and SFT are real.
STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$*" >> CALLS; fi',
    "srun": """
shift
pids=()
for node in 0 1; do SLURM_NODEID=$node "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}"; sleep 0.3; kill -TERM "${pids[@]}" 2>/dev/null' TERM
for pid in "${pids[@]}"; do
    wait "$pid"; code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
done
exit $code""",
    "uv": """
shift
case "$*" in *" pairs "*|*" dpo "*|*" evaluate "*) exit 0;; esac
if [ "$1" = tunebook ]; then set -- python -m "$@"; fi
shift
exec PYTHON "$@\"""",
}

SLOW = """
import torch, time
whole = torch.Tensor.backward
def backward(self, *args, **kwargs):
    time.sleep(0.3)
    return whole(self, *args, **kwargs)
torch.Tensor.backward = backward
"""


def slurm_job(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    """The Slurm script on two machines of one process each, its steps slow enough to be interrupted."""
    (folder / "bin").mkdir()
    for name, source in STAND_INS.items():
        program = folder / "bin" / name
        source = source.replace("CALLS", str(folder / "calls")).replace("PYTHON", sys.executable)
        program.write_text(f"#!/usr/bin/env bash\n{source}\n")
        program.chmod(0o755)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SLOW)
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "RANK")} | slurm
    env |= {"PATH": f"{folder / 'bin'}:{env['PATH']}", "PYTHONPATH": str(folder / "site")}
    script = ROOT / "resources" / "launch" / "slurm.sh"
    with (folder / "slurm.log").open("w") as log:
        return subprocess.Popen(["bash", script, str(recipe)], stdout=log, stderr=log, text=True, env=env)


def test_two_processes_train_as_one_and_end_together(recipe, tmp_path):
    """One is killed: the other ends, one line says so.

    Under Slurm it goes on, is preempted, and leaves a checkpoint of the step under way. The same command goes
    on from there, and the whole trace is that of one process.
    """
    from tunebook.training.sft import sft

    command = ("sft", "--recipe", str(recipe))
    killed = two(*command)
    run_dir = load_recipe(recipe).run_dir
    deadline = time.monotonic() + 480
    while not (run_dir / ".sft.partial" / "checkpoints" / "checkpoint-5" / "checksums.json").exists():
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[1][-2000:]
        time.sleep(0.02)
    workers = sorted(psutil.Process(killed.pid).children(), key=lambda p: int(p.environ()["RANK"]))
    assert [p.environ()["RANK"] for p in workers] == ["0", "1"]
    workers[1].kill()
    start = time.monotonic()
    err = killed.communicate(timeout=60)[1]
    assert (
        killed.returncode == 2 and time.monotonic() - start < 60 and not any(p.is_running() for p in workers)
    )
    line = "tunebook: process 1 was ended by SIGKILL (often for want of memory). "
    line += "All processes were stopped; the same command goes on"
    assert err.splitlines()[-1].startswith(line) and "Traceback" not in err and err.count("tunebook: ") == 1
    assert not (run_dir / "sft").exists()

    job = slurm_job(recipe, tmp_path)
    metrics = run_dir / ".sft.partial" / "metrics.jsonl"
    at_kill = metrics.read_text().count("\n")
    log = tmp_path / "slurm.log"
    # The checkpoint's history is written again before the first new step.
    while "Going on from" not in log.read_text() or metrics.read_text().count("\n") < at_kill + 2:
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 0, log.read_text()[-2000:]
    assert (tmp_path / "calls").read_text() == "requeue 7\n"
    assert "the step ended with exit code 143" in log.read_text() and "Traceback" not in log.read_text()
    steps = max(json.loads(line)["step"] for line in metrics.read_text().splitlines())
    assert (metrics.parent / "checkpoints" / f"checkpoint-{steps}" / "checksums.json").exists()
    assert 6 < steps < 20

    again = two(*command)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err[-2000:]
    assert (
        out.count("Mask audit") == 1
        and f"Going on from checkpoint-{steps} " in out
        and out.count("Wrote ") == 1
    )
    metrics = json.loads((run_dir / "sft" / "stage.json").read_text())["metrics"]
    assert (metrics["effective_batch_size"], metrics["processes"], metrics["per_device_batch_size"]) == (
        4,
        2,
        2,
    )
    one = load_recipe(recipe, run="one")
    alone = sft(one)["metrics"]
    assert close(trace(run_dir), trace(one.run_dir)) and len(trace(run_dir)) == 20
    assert metrics["tokens"] == alone["tokens"] and metrics["steps"] == alone["steps"] == 20


def test_dpo_in_two_processes_with_too_little_memory(recipe, tmp_path):
    """The second process runs out of memory: one line says which batch to set.

    With that the trace is that of one process.
    """
    from tunebook.data.storage import load
    from tunebook.models import backend
    from tunebook.pairs.pairs import pairs
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    backend.backend()
    one = load_recipe(recipe, run="one")
    sft(load_recipe(recipe, run="one"))
    with (tmp_path / "pairs.jsonl").open("w") as out:
        for row in load(one, "train"):
            right = row["completion"][0]["content"]
            pair = {
                "prompt": row["prompt"],
                "chosen": right,
                "rejected": re.sub(r"boxed\{.*\}", "boxed{12345}", right),
                "answer": row["gold"],
            }
            out.write(json.dumps(pair) + "\n")
    pairs(one)
    shutil.copytree(one.run_dir, one.run_dir.with_name("two"))
    alone = dpo(one)["metrics"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("""
import os
if os.environ.get("RANK") == "1":
    import torch
    whole, calls = torch.Tensor.backward, []
    def backward(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, *args, **kwargs)
    torch.Tensor.backward = backward
""")
    command = ("dpo", "--recipe", str(recipe), "--run", "two")
    scarce = {"PYTHONPATH": f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}"}
    both = two(*command, **scarce)
    _, err = both.communicate(timeout=300)
    assert both.returncode == 2 and "Traceback" not in err, err[-2000:]
    assert err.splitlines()[-1] == (
        "tunebook: out of memory with 2 rows a device: set per_device_train_batch_size=1 "
        "and gradient_accumulation_steps=4, then a step has as many rows as before (process 1)"
    )
    batch = ("per_device_train_batch_size=1", "gradient_accumulation_steps=4")
    again = two(*command, *(word for key in batch for word in ("--set", f"dpo.{key}")))
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0 and "Traceback" not in err, err[-2000:]
    run_dir = one.run_dir.with_name("two")
    metrics = json.loads((run_dir / "dpo" / "stage.json").read_text())["metrics"]
    assert (metrics["effective_batch_size"], metrics["per_device_batch_size"], metrics["steps"]) == (4, 1, 8)
    assert alone["effective_batch_size"] == 4
    assert close(trace(run_dir, "dpo"), trace(one.run_dir, "dpo"))


def test_gemma3n_with_images_in_two_processes_with_checkpointing():
    """No layer that is computed again may count as unused or as ready twice."""
    from tunebook.training.sft import sft

    settings = {
        "data.sources": [{"format": "mm_math", "path": "sample", "rows": 24, "val": 0, "test": 0}],
        "lora.use_gradient_checkpointing": True,
        "sft.gradient_checkpointing": True,
        "sft.gradient_checkpointing_kwargs": {"use_reentrant": False},
        "sft.per_device_train_batch_size": 4,
        "sft.max_steps": 3,
        "sft.eval_strategy": "no",
        "sft.save_strategy": "no",
        "sft.logging_steps": 1,
    }
    words = []
    for key, value in settings.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    both = two("sft", "--recipe", "mm-math-sample", "--run", "two", *words)
    _, err = both.communicate(timeout=400)
    assert both.returncode == 0 and "Traceback" not in err, err[-2000:]
    one = load_recipe("mm-math-sample", run="one", overrides=settings)
    alone = sft(one)["metrics"]
    run_dir = one.run_dir.with_name("two")
    metrics = json.loads((run_dir / "sft" / "stage.json").read_text())["metrics"]
    assert (metrics["processes"], metrics["effective_batch_size"], metrics["steps"]) == (2, 4, 3)
    assert metrics["tokens"] == alone["tokens"]
    # Gemma 3n takes no number of tokens (`accepts_loss_kwargs`): each process has the mean of its own rows.
    both_traces = zip(trace(run_dir).values(), trace(one.run_dir).values(), strict=True)
    for found, expected in both_traces:
        assert found == pytest.approx(expected, rel=5e-3)

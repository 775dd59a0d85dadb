"""The files under `resources/launch/` and the Dockerfile start what there is. Slurm is a stand-in."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess

import pytest
import typer
import yaml

from tunebook.cli import app
from tunebook.recipe.files import ROOT

LAUNCH = ROOT / "resources" / "launch"


def check(words: list[str]) -> None:
    """Whether the program takes a command line, by its own parser."""
    command = typer.main.get_command(app)
    with command.make_context("tunebook", words, resilient_parsing=False) as context:
        name, sub, rest = command.resolve_command(context, words)
        sub.make_context(name, rest)


@pytest.fixture
def stand_ins(tmp_path):
    """`srun`, `scontrol` and `uv` that write down their calls; srun runs its command on two nodes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    calls = tmp_path / "calls"
    sources = {
        "scontrol": 'if [ "$1" = show ]; then echo node-a; echo node-b; else echo "scontrol $*" >> CALLS; fi',
        "srun": 'shift; for node in 0 1; do SLURM_NODEID=$node "$@" || exit 1; done',
        "uv": 'echo "$*" >> CALLS; if [ -n "${SLOW:-}" ] && [[ "$*" == *launch* ]]; then sleep 20; fi',
    }
    for name, source in sources.items():
        path = programs / name
        path.write_text(f"#!/usr/bin/env bash\n{source.replace('CALLS', str(calls))}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    slurm = {
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    env = os.environ | slurm | {"PATH": f"{programs}:{os.environ['PATH']}"}
    return env, calls


def test_slurm_starts_the_commands_of_this_project_on_each_machine(stand_ins):
    env, calls = stand_ins
    subprocess.run(["bash", LAUNCH / "slurm.sh", "my.yaml"], env=env, check=True, timeout=60)
    lines = [shlex.split(line) for line in calls.read_text().splitlines()]
    names = []
    for words in lines:
        assert words[0] == "run"
        if words[1] == "python":
            assert words[2:4] == ["-m", "tunebook.training.launch"]
            options = dict(zip(words[4:12:2], words[5:12:2], strict=True))
            assert options == {
                "--nnodes": "2",
                "--node-rank": options["--node-rank"],
                "--master-addr": "node-a",
                "--nproc-per-node": "4",
            }
            assert words[12:14] == ["-m", "tunebook"]
            names.append((words[14], options["--node-rank"]))
            check(words[14:])
        else:
            assert words[1] == "tunebook"
            names.append((words[2], ""))
            check(words[2:])
    assert names == [
        ("prepare", ""),
        ("sft", "0"),
        ("sft", "1"),
        ("pairs", ""),
        ("dpo", "0"),
        ("dpo", "1"),
        ("evaluate", ""),
    ]


def test_a_preempted_job_goes_back_into_the_queue(stand_ins):
    import signal
    import time

    env, calls = stand_ins
    job = subprocess.Popen(
        ["bash", LAUNCH / "slurm.sh", "my.yaml"], env=env | {"SLOW": "1"}, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not calls.exists() or "launch" not in calls.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    try:
        assert job.wait(timeout=60) == 0
    finally:
        os.killpg(job.pid, signal.SIGKILL) if job.poll() is None else None
    assert calls.read_text().splitlines()[-1] == "scontrol requeue 7"


def test_the_other_files_start_commands_that_there_are():
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][0] == "tunebook"
    check(container["command"][1:])
    volumes = {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    sky = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert f"{sky['envs']['RECIPE']}.yaml" in {path.name for path in (ROOT / "configs").glob("*.yaml")}
    for text in (sky["run"], (LAUNCH / "hf_jobs.sh").read_text()):
        (line,) = re.findall(r"uv run tunebook (.*?)(?: &&)?$", text, re.MULTILINE)
        check(shlex.split(line))
    for script in LAUNCH.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)


def test_the_dockerfile_copies_what_there_is():
    text = (ROOT / "Dockerfile").read_text()
    instructions = {
        line.split()[0] for line in re.sub(r"\\\n", " ", text).splitlines() if line and line[0] != "#"
    }
    assert instructions <= {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "EXPOSE", "CMD"}
    (files,) = re.findall(r"^COPY (.*uv\.lock.*) \./$", text, re.MULTILINE)
    assert all((ROOT / name).is_file() for name in files.split())
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".env", "runs", ".venv"} <= set(ignored)

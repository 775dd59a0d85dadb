"""No secret is written or shown, nothing calls out unasked, nothing is unpickled."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fake_keys import FAKE, clean_of_keys


@pytest.fixture
def keys(monkeypatch):
    for name, value in FAKE.items():
        monkeypatch.setenv(name, value)


def test_commands_that_work_and_that_fail_leave_no_key(keys, run_cli, tmp_path):
    """Prepare writes data, manifest and quarantine; the others fail."""
    small = [
        "--set",
        "data.sources.0.train=4",
        "--set",
        "data.sources.0.val=0",
        "--set",
        "data.sources.0.test=0",
    ]
    done = [
        run_cli("prepare", *small),
        run_cli("clean"),
        run_cli("prepare", "--set", f"sft.run_name={FAKE['API_KEY']}"),
    ]
    assert [d.returncode for d in done] == [0, 2, 2]
    clean_of_keys(*(d.stdout + d.stderr for d in done), tmp_path / "runs")
    assert (tmp_path / "runs" / "smollm2-math" / "manifest.json").exists()


GUARD = """
import socket, sys
def refused(name):
    real = getattr(socket, name) if name == "getaddrinfo" else getattr(socket.socket, name)
    def call(*args, **kwargs):
        at = args[0] if name == "getaddrinfo" else args[1]
        host = at if name == "getaddrinfo" else at[0] if isinstance(at, tuple) else "localhost"
        if str(host) not in ("localhost", "127.0.0.1", "::1", "None", "0.0.0.0"):
            print("CALLED OUT:", host, flush=True)
            raise OSError("no network in this test")
        return real(*args, **kwargs)
    return call
socket.getaddrinfo = refused("getaddrinfo")
socket.socket.connect, socket.socket.connect_ex = refused("connect"), refused("connect_ex")
from tunebook.cli import main
sys.argv = ["tunebook", *sys.argv[1:]]
main()
"""


def test_preparing_data_calls_nobody(embedded, tmp_path):
    guarded(
        [
            "prepare",
            "--set",
            "data.sources.0.train=4",
            "--set",
            "data.sources.0.test=4",
        ]
    )


def test_training_calls_nobody(tiny_recipe):
    said = guarded(["sft", "--recipe", str(tiny_recipe), "--set", "sft.max_steps=2"])
    assert "Wrote" in said


def guarded(args: list[str]) -> str:
    """A command in a process that may not leave this machine, with the hub allowed.

    Nothing is asked of it all the same.
    """
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "UNSLOTH_DISABLE_STATISTICS")
    }
    done = subprocess.run(
        [sys.executable, "-c", GUARD, *args], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CALLED OUT" not in done.stdout + done.stderr, done.stdout[-2000:]
    return done.stdout

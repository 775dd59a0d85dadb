"""Ctrl-C: once is once, and what is said afterwards is what lies on the disk."""

from __future__ import annotations

import os
import signal
import threading
import time

from tunebook.interrupting import what_is_kept
from tunebook.runs import signals
from tunebook.runs.files import write_json


def test_a_ctrl_c_that_uv_hands_on_is_not_a_second_one(monkeypatch):
    """Without a terminal `uv run` sends it again after 0.2 seconds; a second one would end all at once."""
    monkeypatch.setattr(signals, "TWIN_S", 0.3)
    received = []
    with signals.handled_by(lambda number, frame: received.append(number)):
        twin = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        twin.start()
        signal.raise_signal(signal.SIGINT)
        twin.join()
        time.sleep(0.05)
        assert received == [signal.SIGINT]
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # a user's own second one
    assert received == [signal.SIGINT, signal.SIGTERM, signal.SIGINT]


def test_an_interruption_says_whether_a_checkpoint_is_there(tmp_path):
    assert what_is_kept(tmp_path) == "what was saved is kept"
    partial = tmp_path / ".sft.partial"
    checkpoints = partial / "checkpoints"
    checkpoints.mkdir(parents=True)
    write_json(partial / "started.json", {})
    assert what_is_kept(tmp_path) == "there is no checkpoint of sft yet, it starts anew"
    for step in (2, 10, 11):
        (checkpoints / f"checkpoint-{step}").mkdir()
    for step in (2, 10):  # the third was cut short
        write_json(checkpoints / f"checkpoint-{step}" / "checksums.json", {})
    assert what_is_kept(tmp_path) == "checkpoint-10 of sft is kept"
    # Pairs were under way when it was interrupted.
    (tmp_path / ".pairs.partial").mkdir()
    write_json(tmp_path / ".pairs.partial" / "started.json", {})
    os.utime(partial / "started.json", (1, 1))
    assert what_is_kept(tmp_path) == "what was saved is kept"

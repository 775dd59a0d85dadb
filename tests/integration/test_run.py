"""The run folder: whole results or none, one writer at a time, a manifest that says what was done."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.runs.stage import Stage


def stage(**settings) -> Stage:
    return Stage(load_recipe(overrides={"sft.learning_rate": 0.5}), "sft", settings, {"data": "abc"})


def test_a_kill_at_any_change_of_a_file_loses_nothing(tmp_path):
    """A stage is filled again with other settings, killed at its first change of a file, at its second, ...

    The next call ends with the new result, whole and recorded, and with nothing else in the folder. A result
    that was whole at the kill is not made again.
    """
    code = textwrap.dedent("""
        import os, shutil, sys
        from pathlib import Path
        from faults import count_changes
        from tunebook.recipe.loading import load_recipe
        from tunebook.runs import files, stage as run

        run.environment = dict  # git and versions: slow, and nothing of theirs is at stake
        recipe = load_recipe()

        def fill(value, kill_at=0):
            pid = os.fork()
            if pid == 0:
                sys.stdout = open(os.devnull, "w")
                count_changes(str(recipe.run_dir), kill_at)
                stage = run.Stage(recipe, "sft", {"x": value}, {})
                if not stage.skip(False):
                    with stage.open() as folder:
                        (folder / "file").write_text(value)
                        with Path(os.environ["LOG"]).open("a") as log:
                            log.write(value)
                os._exit(0)
            return os.waitpid(pid, 0)[1] == 9

        for n in range(1, 99):
            shutil.rmtree(recipe.run_dir, ignore_errors=True)
            fill("old")
            killed = fill("new", n)
            found = [recipe.run_dir / d for d in (".sft.partial", "sft")]
            whole = any((f / "stage.json").exists() and (f / "file").read_text() == "new" for f in found)
            Path(os.environ["LOG"]).write_text("")
            fill("new")
            made = Path(os.environ["LOG"]).read_text()
            entry = files.read_json(recipe.run_dir / "manifest.json")["stages"]["sft"]
            here = sorted(p.name for p in recipe.run_dir.iterdir())
            assert here == [".lock", ".owner.json", "manifest.json", "sft"], (n, here)
            assert sorted(p.name for p in (recipe.run_dir / "sft").iterdir()) == ["file", "stage.json"], n
            assert (recipe.run_dir / "sft" / "file").read_text() == "new", n
            assert entry["settings"] == {"x": "new"}, n
            assert not (whole and made), (n, "made again")
            if not killed:
                print(n)
                break
    """)
    env = os.environ | {"LOG": str(tmp_path / "log"), "PYTHONPATH": os.pathsep.join([*sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0 and int(done.stdout) > 10, done.stderr[-2000:]


def test_a_second_process_is_refused_and_told_who_the_first_is():
    code = textwrap.dedent("""
        import sys
        from tunebook.recipe.loading import load_recipe
        from tunebook.runs.stage import Stage
        with Stage(load_recipe(), "sft", {}, {}).open():
            print("in", flush=True)
            sys.stdin.readline()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=rf"in use by process {other.pid}"), stage(x=1).open():
            pass
        other.communicate("\n")
    with stage(x=1).open():
        pass

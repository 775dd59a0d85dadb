"""`tunebook`: the stages on the command line.

uv run tunebook --help
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

from tunebook.commands import begin, check, options, stages, use  # noqa: F401 - each adds its commands
from tunebook.commands.options import app
from tunebook.recipe.errors import UserError, first_line, shorten
from tunebook.recipe.files import ROOT, program
from tunebook.recipe.secrets import scrubbed
from tunebook.runs.files import disk_full_as_user_error
from tunebook.runs.signals import INTERRUPTED, TERMINATED
from tunebook.training import launch

OUT_OF_MEMORY = (
    "out of memory: free the GPU of other programs (`nvidia-smi` lists them), or take fewer answers at a "
    "time (pairs.batch_size, evaluate.batch_size, evaluate.benchmarks.batch_size), fewer tokens "
    "(model.max_seq_length, max_new_tokens) or model.load_in_4bit=true; what was finished is kept"
)


def main() -> None:
    """Entry point. A user's mistake or a full disk is one line on stderr and exit code 2; Ctrl-C is 130.

    What is no mistake of the user's is one line that says where its traceback lies, and exit code 1. With
    `TUNEBOOK_DEBUG=1` every traceback is shown.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Unicode shows a `?`, and nothing stops for that.
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="replace")
    if launch.is_worker():
        launch.work(app)
        return
    try:
        with disk_full_as_user_error(Path(os.environ.get("TUNEBOOK_RUNS") or ROOT)):
            app()
    except Exception as error:
        if os.environ.get("TUNEBOOK_DEBUG", "0") not in ("", "0"):
            raise
        if "tqdm" in sys.modules:  # whose bar may have been cut off in the middle of its line
            print(file=sys.stderr)
        if "torch" in sys.modules:
            from tunebook.models.backend import is_out_of_memory

            error = UserError(OUT_OF_MEMORY) if is_out_of_memory(error) else error
        if isinstance(error, UserError):
            print(f"tunebook: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        print(f"tunebook: {_unknown(error)}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code not in (INTERRUPTED, TERMINATED):
            raise
        again = f"{program()} {shlex.join(sys.argv[1:])}"
        from tunebook.interrupting import what_is_kept  # no command but an interrupted one needs it

        kept = what_is_kept(options.run_folders[-1]) if options.run_folders else "what was saved is kept"
        print(f"\ntunebook: interrupted; {kept}. Go on with: {again}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(end.code)  # an orderly end would wait for what a server has not answered


def _unknown(error: Exception) -> str:
    """One line about an error that nobody has foreseen; its traceback is written into the run folder."""
    text = scrubbed("".join(traceback.format_exception(error)))
    folders = [folder for folder in options.run_folders if folder.is_dir()]
    file = (folders or [Path(tempfile.gettempdir())])[-1] / "traceback.txt"
    try:
        file.write_text(text, encoding="utf-8")
        place = f"the whole traceback lies in {file}"
    except OSError:
        place = "TUNEBOOK_DEBUG=1 shows the whole traceback"
    return f"{type(error).__name__}: {shorten(scrubbed(first_line(error)), 300)} ({place})"

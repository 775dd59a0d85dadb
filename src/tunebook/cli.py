"""`tunebook`: the stages on the command line.

uv run tunebook --help
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from pathlib import Path

from tunebook.commands import begin, check, stages, use  # noqa: F401 - each adds its commands to the program
from tunebook.commands.options import app
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT, program
from tunebook.runs.files import disk_full_as_user_error
from tunebook.training import launch

INTERRUPTED = 130
"""What Typer makes of a KeyboardInterrupt."""


def main() -> None:
    """Entry point. A user's mistake or a full disk is one line on stderr and exit code 2; Ctrl-C is 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Unicode shows a `?`, and nothing stops for that.
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="replace")
    if launch.is_worker():
        launch.work(app)
        return
    # What is no mistake of the user's is shown with its traceback.
    try:
        with disk_full_as_user_error(Path(os.environ.get("TUNEBOOK_RUNS") or ROOT)):
            app()
    except UserError as error:
        if "tqdm" in sys.modules:  # whose bar may have been cut off in the middle of its line
            print(file=sys.stderr)
        print(f"tunebook: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        again = f"{program()} {shlex.join(sys.argv[1:])}"
        print(
            f"\ntunebook: interrupted; what was saved is kept. Go on with: {again}",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # an orderly end would wait for what a server has not answered

"""Write tasks into a folder, a row of JSON a line.

    python -m writing_tasks tasks --split sft --number 500
    python -m writing_tasks tasks --split test --number 1500

This writes `tasks/sft.jsonl` and `tasks/test.jsonl`: `prompt`, `instructions`, `slice`, `kinds`, `id`, and of
the split `written` a `completion`. The same command writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from writing_tasks.tasks import row, tasks, written_tasks
from writing_tasks.topics import SPLITS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m writing_tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--split", choices=(*SPLITS, "written"), default="sft")
    parser.add_argument("--number", type=int, default=500, metavar="N", help="so many tasks (500)")
    parser.add_argument("--seed", type=int, default=0, help="other tasks for another seed (0)")
    options = parser.parse_args(arguments)
    path = options.folder / f"{options.split}.jsonl"
    try:
        if path.exists():
            raise ValueError(f"{path} is there already: give another folder, or remove it")
        drawn = tasks(options.split, options.number, options.seed)
        if options.split == "written":
            drawn = written_tasks()
        lines = [json.dumps(row(task), ensure_ascii=False) + "\n" for task in drawn]
    except ValueError as error:
        parser.error(str(error))
    options.folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

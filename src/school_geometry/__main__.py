"""Write practice problems into a folder: rows of text, or figures in MM_Math's form.

    python -m school_geometry problems --split train --number 800 --wordings 0
    python -m school_geometry problems --split test --number 600
    python -m school_geometry figures --number 600 --figures

The first two write `problems/train.jsonl` and `problems/test.jsonl`, a row a line: `prompt`, `completion`,
`answer`, `slice`, `family`, `difficulty`, `id`. The last one writes `figures/MM_Math.jsonl` and
`figures/images/`. The same command writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from school_geometry import figures
from school_geometry.problems import TRAINED, Problem, problems_of_split


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m school_geometry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--number", type=int, default=1000, metavar="N", help="so many problems (1000)")
    parser.add_argument("--seed", type=int, default=0, help="other problems for another seed (0)")
    parser.add_argument(
        "--wordings",
        type=int,
        nargs="+",
        choices=TRAINED,
        default=TRAINED,
        help="of the three wordings a family has for training, those that train rows come in (all)",
    )
    parser.add_argument(
        "--figures", action="store_true", help="draw figures instead, of the train split in all wordings"
    )
    options = parser.parse_args(arguments)
    try:
        if options.figures:
            if options.split != "train" or set(options.wordings) != set(TRAINED):
                raise ValueError("--figures are of the train split in all wordings")
            figures.write_sample(options.folder, options.number, options.seed)
        else:
            write_rows(options.folder, options.split, options.number, options.seed, options.wordings)
    except ValueError as error:
        parser.error(str(error))


def write_rows(folder: Path, split: str, number: int, seed: int, wordings: Collection[int]) -> None:
    """Write `number` problems of a split to `<split>.jsonl`, as rows of prompt and completion.

    Raises ValueError when there are fewer problems, or when there is such a file already.
    """
    path = folder / f"{split}.jsonl"
    if path.exists():
        raise ValueError(f"{path} is there already: give another folder, or remove it")
    lines = []
    for problem in problems_of_split(split, number, seed, wordings):
        lines.append(json.dumps(row(problem), ensure_ascii=False) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def row(problem: Problem) -> dict[str, str]:
    return {
        "prompt": problem.question,
        "completion": problem.solution,
        "answer": problem.answer,
        "slice": problem.slice,
        "family": problem.family,
        "difficulty": problem.difficulty,
        "id": f"{problem.id}/{problem.wording}",
    }


if __name__ == "__main__":
    main()

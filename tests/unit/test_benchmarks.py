"""What the benchmarks measure with: a process and its children, sides by turns, generated rows."""

from __future__ import annotations

import sys

from tunebook.recipe.files import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import common
import rows


def test_sides_take_turns_and_are_compared_turn_by_turn():
    calls: list[str] = []
    sides = {name: (lambda name=name: calls.append(name) or {"x": len(calls)}) for name in "ab"}
    found = common.by_turns(sides, 3)
    assert "".join(calls) == "abbaab"
    assert [turn["x"] for turn in found["b"]] == [2, 3, 6]
    assert common.ratio([2, 9, 8], [1, 3, 2]) == {"median": 3, "lowest": 2, "highest": 4}


def test_generated_rows_are_the_same_each_time_and_some_are_to_be_put_aside():
    found = list(rows.rows(1_300))
    assert found == list(rows.rows(1_300)) != list(rows.rows(1_300, seed=1)) and len(found) == 1_300
    assert found[0]["completion"].endswith(f"boxed{{{found[0]['answer']}}}")
    first = [row["prompt"] for row in found[:1_000]]
    copies = [row for row in found[1_000:] if row["prompt"] in first]
    near = [
        row for row in found[1_000:] if row["prompt"].removesuffix(" Thanks") in first and row not in copies
    ]
    broken = [row for row in found[1_000:] if not row["completion"].startswith("### Solution")]
    assert [len(copies), len(near), len(broken)] == [3, 3, 3]

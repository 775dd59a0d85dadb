"""Imports run one way: down the order of the rooms, inside functions too, and never in a circle."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunebook.recipe.files import ROOT

FLOORS = (
    {"recipe"},
    {"runs"},
    {"models"},
    {"generation"},
    {"checkers"},
    {"data"},
    {"pairs"},
    {"training", "evaluation"},
    {"export"},
    {"chat"},
    {"doors"},
)
"""Rooms from the ground up; a room imports of itself and of lower floors.

The doors are the files beside the rooms.
"""
SOURCE = ROOT / "src"
FILES = sorted((SOURCE / "tunebook").rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def room_of(module: str) -> str:
    """`data` of `tunebook.data.rows`; `doors` of `tunebook.cli` and `tunebook.commands.use`."""
    first = module.split(".")[1]
    is_room = first != "commands" and (SOURCE / "tunebook" / first).is_dir()
    return first if is_room else "doors"


def floor_of(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room_of(module) in rooms)


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The modules of `tunebook` that import statements name."""
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            # `from tunebook.data import rows` names a module, `from tunebook.data.rows import Row` does not.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in names]
        yield from (name for name in names if name.split(".")[0] == "tunebook")


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements that run when a module is imported.

    All but those inside functions and for type checkers alone.
    """
    statements: list[ast.AST] = list(tree.body)
    while statements:
        node = statements.pop()
        yield node
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not for_types:
            statements += ast.iter_child_nodes(node)


def test_every_room_has_its_floor():
    assert {room_of(module) for module in MODULES - {"tunebook"}} == set().union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_import_runs_up(path):
    module = module_of(path)
    if module == "tunebook":
        assert list(imported(ast.walk(ast.parse(path.read_text())))) == []
        return
    up = []
    for name in imported(ast.walk(ast.parse(path.read_text()))):
        if name != "tunebook" and room_of(name) != room_of(module) and floor_of(name) >= floor_of(module):
            up.append(name)
    assert up == [], f"{module}, of {room_of(module)}, imports from a higher floor"


def test_no_modules_import_each_other_in_a_circle():
    graph = {}
    for path in FILES:
        graph[module_of(path)] = set(imported(at_import(ast.parse(path.read_text()))))
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize("package", ["school_geometry", "writing_tasks"])
def test_a_package_next_door_stands_alone(package):
    files = list((SOURCE / package).rglob("*.py"))
    assert files
    for path in files:
        assert list(imported(ast.walk(ast.parse(path.read_text())))) == [], path

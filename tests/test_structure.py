"""The shape of the code: no circles of imports, rooms in layers, nothing too large, and tests where their room is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
ALONE = {"test_compat.py", "test_end_to_end.py", "test_no_network.py", "test_plugins.py", "test_structure.py"}
"""Tests of what spans every room, or of a file in the root of the package."""
BESIDE = {
    "architectures",
    "devices",
    "docs",
    "faults",
    "goldens",
    "helpers",
    "methods",
    "reference",
    "reports",
    "tasks",
    "thirdparty",
}
"""Folders of ``tests/`` that are no room of ``mtlbench/``: plugin families, documents, faults, and what tests need."""


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", ROOT / "tools" / "structure.py")
    assert spec is not None and spec.loader is not None
    sys.modules["structure"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


structure = load_tool()
GRAPH = structure.read_graph(ROOT)


def test_no_circle_of_imports() -> None:
    """Imports inside functions and for types alone count."""
    found = structure.circles(GRAPH.imports)
    assert not found, "these files import one another in a circle: " + "; ".join(map(", ".join, found))


def test_rooms_import_only_what_stands_below() -> None:
    found = structure.upward(GRAPH, structure.layers(ROOT))
    assert not found, "against the layers of pyproject.toml: " + ", ".join(f"{a} -> {b}" for a, b in found)


def test_every_room_stands_in_the_layers() -> None:
    rooms = {structure.room_of(module) for module in GRAPH.files} - {structure.PACKAGE}
    placed = [room for layer in structure.layers(ROOT) for room in layer]
    assert sorted(placed) == sorted(rooms), "the layers contract of pyproject.toml names each room once, and no other"


def test_few_folders_import_each_other() -> None:
    found = structure.mutual(GRAPH)
    assert len(found) <= 2, found


def test_no_room_is_most_of_the_house() -> None:
    rooms = structure.room_lines(GRAPH)
    largest = max(rooms, key=rooms.__getitem__)
    assert rooms[largest] <= 0.16 * sum(rooms.values()), f"{largest}: {rooms[largest]} of {sum(rooms.values())} lines"


def test_no_folder_is_a_heap() -> None:
    found = {folder: count for folder, count in structure.flat_files(GRAPH).items() if count > 17}
    assert not found, f"more than 17 files in one folder: {found}"


def test_files_are_few() -> None:
    count = len(GRAPH.files)
    assert count <= 370, "merge small files that only one other file uses"


def test_few_files_are_small() -> None:
    found = structure.small_files(GRAPH)
    assert len(found) <= 45, f"{len(found)} files of at most {structure.SMALL} lines: {', '.join(found)}"


def test_tests_lie_in_the_room_they_test() -> None:
    rooms = {path.parent.name for path in (ROOT / structure.PACKAGE).glob("*/__init__.py")}
    folders = {path.parent.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/*.py")}
    assert rooms - folders == set(), "rooms without tests"
    assert folders - rooms - BESIDE == set(), "folders of tests for no room"
    assert {path.name for path in (ROOT / "tests").glob("test_*.py")} == ALONE, "a test goes to the room it tests"


def test_the_quick_tests_are_there() -> None:
    """Renamed files and tests would end ``make test-quick`` with an error; every room has some of its tests in it."""
    lines = (ROOT / "tests" / "quick.txt").read_text().split()
    for line in lines:
        path, _, name = line.partition("::")
        assert (ROOT / path).exists(), line
        assert not name or f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(), line
    rooms = {path.parent.name for path in (ROOT / structure.PACKAGE).glob("*/__init__.py")}
    assert rooms <= {Path(line.partition("::")[0]).parts[1] for line in lines}


def test_no_two_files_of_tests_have_one_name() -> None:
    """Folders of tests are no packages, so that a second file of a name would hide the first."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name not in ("conftest.py", "__init__.py")]
    assert sorted(set(names)) == sorted(names)


def test_the_figures_of_a_tree_that_breaks_every_rule(tmp_path: Path) -> None:
    """What the tests above would say of it: a guard that cannot fail guards nothing."""
    files = {
        "__init__.py": "",
        "high/__init__.py": "",
        "high/user.py": "from mtlbench.low import one",
        "low/__init__.py": "",
        "low/one.py": "def f():\n    from mtlbench.low.two import g",
        "low/two.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import f\nimport mtlbench.high.user",
        "lost/__init__.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "mtlbench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "pyproject.toml").write_text(
        '[[tool.importlinter.contracts]]\ntype = "layers"\nlayers = ["mtlbench.high", "mtlbench.low"]\n'
    )
    graph = structure.read_graph(tmp_path)
    assert structure.circles(graph.imports) == [["mtlbench.high.user", "mtlbench.low.one", "mtlbench.low.two"]]
    assert structure.upward(graph, structure.layers(tmp_path)) == [("low", "high")]
    assert structure.mutual(graph) == [("mtlbench.high", "mtlbench.low")]
    assert structure.small_files(graph) == ["mtlbench.high.user", "mtlbench.low.one", "mtlbench.low.two"]
    assert (
        structure.flat_files(graph) == {"mtlbench.high": 1, "mtlbench.low": 2}
        and structure.room_lines(graph)["low"] == 6
    )


@pytest.mark.parametrize("figure", ["files", "circles of imports", "arrows against the layers"])
def test_the_figures_are_printed_by_name(figure: str) -> None:
    assert isinstance(structure.figures(ROOT)[figure], int)

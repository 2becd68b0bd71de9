"""Figures of the structure of ``mtlbench/``: sizes of files and rooms, circles of imports, arrows against the layers.

``python tools/structure.py`` prints them; ``tests/test_structure.py`` holds the promises among them.
"""

from __future__ import annotations

import argparse
import ast
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mtlbench"
SMALL = 60
"""Lines of a small file, at most."""


@dataclass(frozen=True)
class Graph:
    """Modules of the package and what each imports of it: at the top, inside functions and for types alike."""

    files: Mapping[str, Path]
    imports: Mapping[str, frozenset[str]]

    def between(self, part: Mapping[str, str]) -> dict[str, set[str]]:
        """The same between the parts that ``part`` puts modules into; modules it leaves out are left out."""
        found: dict[str, set[str]] = {}
        for module, others in self.imports.items():
            for other in others:
                if module in part and other in part and part[module] != part[other]:
                    found.setdefault(part[module], set()).add(part[other])
        return found


def read_graph(root: Path = ROOT) -> Graph:
    """The graph of ``root/mtlbench``, read from its files without importing them."""
    files = {_module(path.relative_to(root)): path for path in sorted((root / PACKAGE).rglob("*.py"))}
    imports = {
        module: frozenset(_imported(ast.parse(path.read_text(encoding="utf-8")), module, files)) - {module}
        for module, path in files.items()
    }
    return Graph(files, imports)


def circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of names that reach one another (strongly connected components of more than one; Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(arrows.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(arrows):
        if name not in index:
            visit(name)
    return found


def layers(root: Path = ROOT) -> list[list[str]]:
    """The rooms by the ``layers`` contract of import-linter, highest first; rooms of one layer stand together."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [[room_of(name.strip()) for name in layer.split(":")] for layer in contract["layers"]]


def room_of(module: str) -> str:
    """The room of a module: its first folder, or its own name where it lies in the root of the package."""
    return module.split(".")[1] if "." in module else module


def upward(graph: Graph, order: list[list[str]]) -> list[tuple[str, str]]:
    """Arrows between rooms from a lower one to a higher one of ``order``, or between two of one layer."""
    height = {room: len(order) - at for at, layer in enumerate(order) for room in layer}
    arrows = graph.between({module: room_of(module) for module in graph.files if module != PACKAGE})
    return [
        (room, other)
        for room, others in sorted(arrows.items())
        for other in sorted(others)
        if height.get(room, 0) <= height.get(other, 0)
    ]


def mutual(graph: Graph) -> list[tuple[str, str]]:
    """Pairs of folders whose files import each other; the root folder and the faces of packages are left out."""
    files = {m: path for m, path in graph.files.items() if path.name != "__init__.py"}
    arrows = graph.between({m: f for m, path in files.items() if (f := _folder(m, path)) != PACKAGE})
    return [(a, b) for a in sorted(arrows) for b in sorted(arrows[a]) if a < b and a in arrows.get(b, ())]


def line_counts(graph: Graph) -> dict[str, int]:
    """Lines of each module."""
    return {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in graph.files.items()}


def room_lines(graph: Graph) -> dict[str, int]:
    """Lines of each room, folders below it included."""
    found: dict[str, int] = {}
    for module, lines in line_counts(graph).items():
        found[room_of(module)] = found.get(room_of(module), 0) + lines
    return found


def flat_files(graph: Graph) -> dict[str, int]:
    """Files of each folder itself, without ``__init__.py``."""
    found: dict[str, int] = {}
    for module, path in graph.files.items():
        if path.name != "__init__.py":
            folder = _folder(module, path)
            found[folder] = found.get(folder, 0) + 1
    return found


def small_files(graph: Graph) -> list[str]:
    """Modules of at most :data:`SMALL` lines, without ``__init__.py``."""
    lines = line_counts(graph)
    return [m for m, path in graph.files.items() if path.name != "__init__.py" and lines[m] <= SMALL]


def figures(root: Path = ROOT) -> dict[str, int | str]:
    """What is measured, by name."""
    graph = read_graph(root)
    rooms, flat = room_lines(graph), flat_files(graph)
    largest, most = max(rooms, key=rooms.__getitem__), max(flat, key=flat.__getitem__)
    return {
        "files": len(graph.files),
        f"files of at most {SMALL} lines": len(small_files(graph)),
        "flat files in the largest folder": f"{flat[most]} ({most})",
        "circles of imports": len(circles(graph.imports)),
        "arrows against the layers": len(upward(graph, layers(root))),
        "pairs of folders that import each other": len(mutual(graph)),
        "largest room": f"{100 * rooms[largest] / sum(rooms.values()):.1f} % of the lines ({largest})",
        "lines": sum(rooms.values()),
        "test files in the root of tests/": len(list((root / "tests").glob("test_*.py"))),
    }


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _folder(module: str, path: Path) -> str:
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def _imported(tree: ast.AST, module: str, known: Mapping[str, Path]) -> Iterator[str]:
    folder = _folder(module, known[module])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = folder.split(".")[: len(folder.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            if source in known:
                for alias in node.names:
                    below = f"{source}.{alias.name}"
                    yield below if below in known else source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="A checkout to measure.  [default: this one]")
    parser.add_argument("--circles", action="store_true", help="Also name files of circles, arrows and pairs.")
    options = parser.parse_args()
    for name, figure in figures(options.root).items():
        print(f"{name}: {figure}")
    if options.circles:
        graph = read_graph(options.root)
        for group in circles(graph.imports):
            print("circle:", ", ".join(group))
        for one, other in upward(graph, layers(options.root)):
            print("against the layers:", one, "->", other)
        for one, other in mutual(graph):
            print("mutual:", one, "<->", other)


if __name__ == "__main__":
    main()

"""Every path and every name of ours that the documents and the docstrings write is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks/README.md",
        *ROOT.glob("docs/**/*.md"),
    )
)
SOURCES = ("mtlbench", "methods/mtlbench_methods", "tasks/mtlbench_tasks", "reports/mtlbench_reports")
FILES = sorted(path.relative_to(ROOT).as_posix() for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))

_PATH = re.compile(r"(?<![\w/.~-])(?:mtlbench|tests|benchmarks|docs|tools|methods|tasks|reports)/[\w./*-]*[\w*]")
_NAME = re.compile(r"(?<![\w/.-])mtlbench(?:_methods|_tasks|_reports)?(?:\.[A-Za-z_]\w*)+(?!\w*[/(]\w*/)")
_LINK = re.compile(r"\]\((?!\w+:)(?P<path>[^)#\s]*)(?:#(?P<place>[^)\s]+))?\)")
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`~?(?P<name>[\w.]+)`")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_only_what_exists(document: str) -> None:
    gone = missing((ROOT / document).read_text(encoding="utf-8"))
    assert not gone, f"{document} names what is not there: {gone}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_links_of_a_document_lead_somewhere(document: str) -> None:
    source = ROOT / document
    dead = []
    for link in _LINK.finditer(source.read_text(encoding="utf-8")):
        target = source.parent / link["path"] if link["path"] else source
        if not target.exists() or (link["place"] and target.suffix == ".md" and link["place"] not in anchors(target)):
            dead.append(link[0][2:-1])
    assert not dead, f"links of {document} lead nowhere: {dead}"


@pytest.mark.parametrize("file", FILES)
def test_the_docstrings_of_a_file_refer_only_to_what_exists(file: str) -> None:
    module = module_of(file)
    wrong = []
    for owner, text in docstrings(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        wrong += missing(text)
        spaces = [f"{module}.{owner}", module] if owner else [module]
        for role in _ROLE.finditer(text):
            name = role["name"]
            if not exists(name) and not any(exists(f"{space}.{name}") for space in spaces):
                wrong.append(role[0])
    assert not wrong, f"docstrings of {file} refer to what is not there: {wrong}"


def test_what_does_not_exist_is_found() -> None:
    assert exists("mtlbench.api.cell.Cell.seed") and exists("mtlbench.api.cell.Cell.key"), "a field and a property"
    assert exists("mtlbench.nn.low_rank") and exists("torch.nn.Module.state_dict")
    assert not exists("mtlbench.api.cell.Cell.sede") and not exists("mtlbench.engine") and not exists("nothing.at.all")
    assert _PATH.findall("see `tests/no_such.py` and https://host/docs/x and docs/*.md.") == [
        "tests/no_such.py",
        "docs/*.md",
    ]
    assert list(docstrings(ast.parse('class A:\n    x: int\n    "of x"\n    def f(self):\n        "of f"\n'))) == [
        ("A", "of x"),
        ("A", "of f"),
    ]


def missing(text: str) -> list[str]:
    """The paths and dotted names of a text that are not there."""
    paths = [path for path in sorted(set(_PATH.findall(text))) if not any(ROOT.glob(path))]
    names = [name for name in sorted(set(_NAME.findall(text))) if name not in entry_points() and not exists(name)]
    return [*paths, *names]


@cache
def exists(name: str) -> bool:
    """Whether a dotted name is a module or something in one; a field of a dataclass counts."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        found: Any = imported(".".join(parts[:cut]))
        if found is not None:
            return all((found := member(found, part)) is not None for part in parts[cut:])
    return False


def member(owner: Any, name: str) -> Any:
    """What ``owner`` holds under a name: an attribute, or the type of a field without a default."""
    if hasattr(owner, name):
        return getattr(owner, name) if getattr(owner, name) is not None else True
    fields = {field for kind in getattr(owner, "__mro__", ()) for field in getattr(kind, "__annotations__", ())}
    return True if name in fields else None


@cache
def imported(name: str) -> Any:
    try:
        return importlib.import_module(name) if importlib.util.find_spec(name) else None
    except ImportError:
        return None


def module_of(file: str) -> str:
    """The dotted name of a file of the packages."""
    folder = next(folder for folder in SOURCES if file.startswith(f"{folder}/"))
    parts = Path(file).relative_to(Path(folder).parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def docstrings(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, str]]:
    """Strings that stand alone, those behind values too, each with the class it stands in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield owner, node.value.value
        else:
            yield from docstrings(node, node.name if isinstance(node, ast.ClassDef) else owner)


@cache
def entry_points() -> frozenset[str]:
    """The groups that plugins are found by, which are no modules."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return frozenset(project["entry-points"])


@cache
def anchors(document: Path) -> frozenset[str]:
    """The places that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ +(.*?) *$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)

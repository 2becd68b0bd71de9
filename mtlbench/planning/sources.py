"""The source code behind a cell: which files of a plugin decide its numbers, and a digest of what they say.

Nothing of a plugin is imported: files are found by the names of modules, and read as syntax trees. The harness itself
(the package ``mtlbench``) is not followed: :data:`mtlbench.api.cell.COMPUTATION` stands for it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mtlbench.api.cell import Cell, digest
from mtlbench.api.hooks import PROJECT
from mtlbench.api.task import Task
from mtlbench.errors import RequestError
from mtlbench.plugins import Offer, offer_of

_SILENT = {"ctx", "kind", "type_comment", "type_ignores"}
"""Fields of syntax trees that say nothing about what a program does, or that not every Python has."""
_TOLD = {"source", "presets", "protocols", "example_settings"}
"""Attributes of a method's class that no number follows from; what a preset or a protocol sets is in the cell."""


def sources_of(method: str, tasks: Mapping[str, Task], *, balance: str = "none") -> dict[str, str]:
    """Group and name of each plugin, joined by a slash, to a digest of what it adds to a cell.

    Of a method that is its source: the entry point's module, the modules of its distribution that this imports, and so
    on, without comments and docstrings. Of a suite it is what it says of these tasks; their prompts and data have
    digests of their own.

    Args:
        method: One name, or several joined by ``+``.
        tasks: Full task name to task.
        balance: A balancer with its settings. One that comes with mtlbench adds nothing, as the harness does not.
    """
    of_methods = {f"methods/{name}": _of_plugin(offer_of("methods", name)) for name in method.split("+")}
    suites: dict[str, dict[str, list[Any]]] = {}
    for full, task in tasks.items():
        said = [task.dataset, task.config, task.train_split, task.eval_split, list(task.metrics)]
        suites.setdefault(full.partition("/")[0], {})[full] = said
    if balance != "none":
        balancer = offer_of("balancers", balance.partition("[")[0])
        if balancer.module.partition(".")[0] != PROJECT:
            of_methods[f"balancers/{balancer.name}"] = _of_plugin(balancer)
    return of_methods | {f"tasks/{name}": digest(said) for name, said in suites.items()}


def check_sources(cell: Cell) -> None:
    """Refuse to run a cell with other code of its method or balancer than it was planned with.

    Raises:
        RequestError: naming the plugins whose source changed.
    """
    planned = {name: said for name, said in cell.sources.items() if name.startswith(("methods/", "balancers/"))}
    if not planned:
        return
    changed = [name.partition("/")[2] for name, said in planned.items() if _at_first(name) != said]
    if changed:
        raise RequestError(
            f"The source of {', '.join(changed)} is not the one that this cell was planned with: it was edited since, "
            "or this machine has another one installed. Start the same command again to plan with what is there."
        )


@cache
def _at_first(name: str) -> str:
    """What the source was when this process first asked: about when it loaded it, which it does once."""
    return _of_plugin(offer_of(*name.split("/", 1)))


def _of_plugin(offer: Offer) -> str:
    # Without a readable file, only the version can tell one code from another.
    return source_digest(offer.module, offer.distribution) or offer.origin


def source_digest(module: str, distribution: str) -> str:
    """16 hexadecimal digits for the source that ``module`` consists of; empty where no file of it is found."""
    files = source_files(module, distribution)
    return digest({name: _read(path).digest for name, path in files.items()}) if module in files else ""


def source_files(module: str, distribution: str) -> dict[str, Path]:
    """Module name to its file: ``module`` and, transitively, what it imports from its own distribution."""
    found: dict[str, Path] = {}
    own, waiting = _Own(module, distribution), [module]
    while waiting:
        for name in _with_parents(waiting.pop()):
            path = None if name in found else file_of(name)
            if path is not None and own.has(name, path):
                found[name] = path
                package = name if path.stem == "__init__" else name.rpartition(".")[0]
                waiting += (_absolute(base, level, package) for level, base in _read(path).imports)
    return found


def _with_parents(name: str) -> Iterator[str]:
    """``a``, ``a.b`` and ``a.b.c`` of ``a.b.c``: importing the last runs all."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _absolute(name: str, level: int, package: str) -> str:
    """The absolute name of a module that a module of ``package`` imports with ``level`` dots."""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *filter(None, [name])]) if level else name


def file_of(name: str) -> Path | None:
    """The file of a module, found without importing its parents."""
    top, *rest = name.split(".")
    spec = _top(top)
    if spec is None:
        return None
    if not rest:
        path = Path(spec.origin) if spec.origin else None
        return path if path is not None and path.is_file() else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        beside = (base.parent / f"{base.name}{suffix}" for suffix in (".py", *EXTENSION_SUFFIXES))
        for candidate in (base / "__init__.py", *beside):
            if candidate.is_file():
                return candidate
    return None


def _top(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


@dataclass
class _Own:
    """Which modules are of the distribution of a plugin: of its package, listed, or in an editable project."""

    module: str
    distribution: str

    def has(self, name: str, path: Path) -> bool:
        top = name.partition(".")[0]
        if top == self.module.partition(".")[0]:
            return True
        if top == PROJECT:
            return False
        inside = self._root is not None and path.is_relative_to(self._root) and "site-packages" not in path.parts
        return inside or path.resolve() in self._listed

    @cached_property
    def _root(self) -> Path | None:
        return editable_root(self.distribution)

    @cached_property
    def _listed(self) -> frozenset[Path]:
        try:
            files = metadata.distribution(self.distribution).files or []
        except metadata.PackageNotFoundError:
            return frozenset()
        return frozenset(Path(str(file.locate())).resolve() for file in files)


@dataclass(frozen=True)
class _Read:
    """What a file says."""

    digest: str
    imports: tuple[tuple[int, str], ...] = ()
    """Number of leading dots, and name, of all modules that statements anywhere in it may import."""


def _read(path: Path) -> _Read:
    state = path.stat()
    return _read_once(path, state.st_mtime_ns, state.st_size)


@cache
def _read_once(path: Path, changed: int, size: int) -> _Read:
    content = path.read_bytes()
    try:
        tree = ast.parse(content) if path.suffix == ".py" else None
    except SyntaxError:
        tree = None
    if tree is None:
        return _Read(hashlib.sha256(content).hexdigest())
    return _Read(hashlib.sha256(repr(_shape(tree)).encode()).hexdigest(), tuple(_imported(tree)))


def _imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A name may be a module or something in one: only the first has a file.
            yield from ((node.level, ".".join(filter(None, [node.module, alias.name]))) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called.strip("_") in ("import_module", "import") and isinstance(node.args[0].value, str):
                yield 0, node.args[0].value


def _shape(node: Any) -> Any:
    """A syntax tree as nested lists, equal on every version of Python, without comments and docstrings."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if name not in _SILENT]
        return [type(node).__name__, *([n, _shape(v)] for n, v in fields if v is not None and v != [])]
    if isinstance(node, list):
        return [_shape(item) for item in node if not (_is_text(item) or _is_told(item))]
    return repr(node)


def _is_text(node: object) -> bool:
    """A string that stands alone: a docstring, or the description of a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_told(node: object) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return bool(targets) and all(isinstance(target, ast.Name) and target.id in _TOLD for target in targets)


# Editable installs


def editable_root(distribution: str) -> Path | None:
    """The project folder of an editable install; ``None`` for any other."""
    try:
        text = metadata.distribution(distribution).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    said = json.loads(text) if text else {}
    if not said.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(said["url"]).path))


def commits_of(distributions: Iterable[str]) -> dict[str, str]:
    """Distribution to the git commit of its working copy, for editable installs that are in git.

    ``-dirty`` follows the commit where files of the project differ from it.
    """
    known = {name: _commit(root) for name in distributions if (root := editable_root(name)) is not None}
    return {name: commit for name, commit in known.items() if commit}


@cache
def _commit(root: Path) -> str:
    commit = _git(root, "rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git(root, "status", "--porcelain", "--", ".") else commit


def _git(root: Path, *arguments: str) -> str:
    try:
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()

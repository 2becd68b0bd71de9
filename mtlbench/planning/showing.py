"""What one name stands for, as lines for people: a method with its settings, a suite, a preset, a protocol."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from textwrap import dedent
from typing import Any

from mtlbench.api.method import Method
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.planning.listing import suite_lines
from mtlbench.planning.presets import preset
from mtlbench.planning.protocols import about, basis_of, fields_of, names
from mtlbench.planning.sources import file_of
from mtlbench.plugins import Offer, carried, load_method, load_suite, offer_of, offers
from mtlbench.text import aligned


def shown(name: str) -> Iterator[str]:
    """The lines of a method, suite, protocol or preset of this name.

    Raises:
        RequestError: nothing has the name.
    """
    plain = name.partition("[")[0]
    if plain in offers("methods"):
        return method_lines(plain)
    if name in offers("tasks"):
        return _suite(name)
    if name in names() or carried("protocols", name)[0] is not None:
        return _protocol(name)
    if carried("presets", name)[0] is not None:
        return _preset(name)
    known = {*offers("methods"), *offers("tasks"), *names(), *carried("presets", name)[1]}
    raise RequestError(f"No method, suite, protocol or preset is called {name!r}. {did_you_mean(name, known)}")


def method_summary(offer: Offer) -> str:
    """The first sentence of a method's module, or of its class if that is not the module's first; imports nothing."""
    path = file_of(offer.module)
    try:
        tree = ast.parse(path.read_bytes()) if path is not None and path.suffix == ".py" else ast.Module([], [])
    except (OSError, SyntaxError):
        return ""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    named = {text: node for node in classes for text in _strings(node, "name")}
    own = offer.name in [*named][1:]
    text = ast.get_docstring(named[offer.name] if own else tree)
    return " ".join((text or "").partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")


def _strings(node: ast.ClassDef, attribute: str) -> Iterator[str]:
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        named = any(isinstance(target, ast.Name) and target.id == attribute for target in targets)
        if named and isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


def method_lines(name: str) -> Iterator[str]:
    """What a method is, where it comes from, and each setting with type, default and meaning."""
    method, offer = load_method(name), offer_of("methods", name)
    yield f"method {name}, of {offer.origin} ({offer.module})"
    yield from ((f"  {line}" if line else "") for line in (inspect.getdoc(method) or "").splitlines())
    yield f"  source: {' '.join(method.source.split())}"
    hints, described = method.setting_types({}), _descriptions(method)
    rows = [("setting", "default", "type", "meaning")]
    for field in fields(method):
        if field.init and field.name in hints:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            rows.append((field.name, _text(default), _kind(hints[field.name]), described.get(field.name, "")))
    known = {row[0] for row in rows}
    rows += [(setting, "", _kind(hint), "") for setting, hint in hints.items() if setting not in known]
    yield from (f"  {line}" for line in aligned(rows, left=(0, 1, 2, 3)))
    for kind in ("presets", "protocols"):
        if carries := getattr(method, kind):
            yield f"  {kind}: {', '.join(carries)}"


def _descriptions(method: type[Method]) -> dict[str, str]:
    """The first sentence of the string below each field, of the class and of those above it."""
    found: dict[str, str] = {}
    for cls in method.__mro__:
        try:
            tree: Any = ast.parse(dedent(inspect.getsource(cls)))
            body: Sequence[Any] = tree.body[0].body
        except (OSError, TypeError, SyntaxError, AttributeError):
            continue
        for statement, below in pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                value = getattr(below, "value", None) if isinstance(below, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    first = " ".join(value.value.split()).partition(". ")[0].rstrip(".")
                    found.setdefault(statement.target.id, first)
    return found


def _suite(name: str) -> Iterator[str]:
    suite, offer = load_suite(name), offer_of("tasks", name)
    yield f"suite {name}: {suite.title}, of {offer.origin} ({offer.module})"
    yield from (f"  {line}" for line in suite_lines(name))
    for kind in ("presets", "protocols"):
        if carries := getattr(suite, kind):
            yield f"  {kind}: {', '.join(carries)}"


def _protocol(name: str) -> Iterator[str]:
    yield f"protocol {name}: {about(name)}"
    basis = basis_of(name)
    rows = [(field, _text(value), basis.get(field, "")) for field, value in fields_of(name).items()]
    yield from (f"  {line}" for line in aligned(rows, left=(0, 1, 2))) if rows else ()


def _preset(name: str) -> Iterator[str]:
    yield f"preset {name}"
    yield from _options(preset(name), indent="  ")


def _options(options: Mapping[str, Any], *, indent: str) -> Iterator[str]:
    for option, value in options.items():
        if option == "parts":
            for number, part in enumerate(value, 1):
                yield f"{indent}part {number}"
                yield from _options(part, indent=f"{indent}  ")
        else:
            listed = isinstance(value, Iterable) and not isinstance(value, str)
            yield f"{indent}{option}: {'; '.join(map(str, value)) if listed else _text(value)}"


def _kind(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _text(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

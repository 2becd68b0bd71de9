"""Reference pages of the site, made from the code: nothing of them is kept in the repository, so none goes stale.

``pages()`` gives them by their path below ``docs/``; ``tools/docs_hook.py`` hands them to MkDocs.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from textwrap import dedent
from typing import Any, get_type_hints

import click

MADE = "<!-- Made by tools/docs_reference.py. -->\n"


@cache
def pages() -> dict[str, str]:
    """Path below ``docs/`` to Markdown."""
    makers: dict[str, Callable[[], Iterable[str]]] = {
        "commands": commands,
        "methods": methods,
        "protocol": protocol,
        "presets": presets,
        "plugins": contracts,
        "nn": toolkit,
        "python": interface,
    }
    return {f"reference/{name}.md": MADE + "\n".join(make()) + "\n" for name, make in makers.items()}


def commands() -> Iterator[str]:
    """Every command with its arguments and options, from click."""
    from mtlbench.cli import cli

    yield "# Commands\n"
    yield "`mtlbench COMMAND --help` prints the same. Options that are not given take the default.\n"
    yield from _command("mtlbench", cli)


def _command(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    if name != "mtlbench":
        yield f"## {name.removeprefix('mtlbench ')}\n"
        yield f"```\n{name} {' '.join(command.collect_usage_pieces(context))}\n```\n"
        yield f"{inspect.cleandoc(command.help or '')}\n"
        rows = [_option(option, context) for option in command.params if isinstance(option, click.Option)]
        yield from _table(("option", "value", "default", "meaning"), rows)
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            found = command.get_command(context, part)
            if found is not None:
                yield from _command(f"{name} {part}", found)


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str, str]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f"`{option.make_metavar(context)}`"
    said = re.search(r"\s*\[default: (.*)\]$", option.help or "")
    text = (option.help or "")[: said.start()] if said else option.help or ""
    shown = option.to_info_dict().get("default")
    kept = not option.is_flag and isinstance(shown, str | int | float) and not isinstance(shown, bool)
    default = said[1] if said else str(shown) if kept else ""
    return names, value, default, text + (" Required." if option.required else "")


def methods() -> Iterator[str]:
    """Every method: docstring with its equations, source, and settings."""
    from mtlbench.planning.showing import method_lines
    from mtlbench.plugins import load_method, offers

    yield "# Methods and their settings\n"
    yield "`mtlbench show NAME` prints the same. A setting is given in brackets: `'lora[rank=4]'`.\n"
    yield "How the methods differ: [methods](../methods.md).\n"
    own = {name: found[0] for name, found in offers("methods").items() if found[0].distribution == "mtlbench"}
    tuners = "mtlbench_methods.peft_tuners"
    for name, offer in own.items():
        if offer.module != tuners:
            method = load_method(name)
            yield f"## {name}\n\n{prose(inspect.getdoc(method))}\n\nSource: {' '.join(method.source.split())}\n"
            yield from _settings(list(method_lines(name)))
    yield "## Tuners of peft\n"
    yield "Their settings are those of their configuration in the installed peft, and are described there.\n"
    for name, offer in own.items():
        if offer.module == tuners:
            yield f"### {name}\n"
            yield from _settings(list(method_lines(name)))


def _settings(lines: list[str]) -> Iterator[str]:
    """The aligned table that ``mtlbench show`` prints, as one of Markdown."""
    starts = [number for number, line in enumerate(lines) if line.startswith("  setting ")]
    if not starts:
        return
    head = lines[starts[0]]
    at = [head.index(word) for word in ("setting", "default", "type", "meaning") if word in head]
    rows = []
    for line in lines[starts[0] + 1 :]:
        if line.startswith(("  presets:", "  protocols:")):
            break
        rows.append([line[start:end].strip() for start, end in pairwise([*at, None])])
    yield from _table(
        ("setting", "default", "type", "meaning"), [(f"`{r[0]}`", r[1], f"`{r[2]}`", prose(r[-1])) for r in rows]
    )


def protocol() -> Iterator[str]:
    """Fields of a protocol, and the named protocols."""
    from mtlbench.api.cell import Protocol
    from mtlbench.planning.protocols import about, basis_of, fields_of, names

    yield "# Fields of a protocol\n"
    yield "A protocol is everything that must be equal for two rows to be compared.\n"
    yield "A TOML file sets fields by these names; [protocols](../protocols.md) says how.\n"
    yield from _fields(Protocol)
    yield "# Named protocols\n"
    for name in names():
        yield f"## {name}\n\n{about(name)}\n"
        basis = basis_of(name)
        rows = [(f"`{field}`", f"`{value}`", basis.get(field, "")) for field, value in fields_of(name).items()]
        yield from _table(("field", "value", "where it comes from"), rows)


def presets() -> Iterator[str]:
    """Every preset as ``mtlbench show`` prints it."""
    from mtlbench.planning.showing import shown
    from mtlbench.plugins import load_method, load_suite, offers

    yield "# Presets\n"
    yield "A preset is a named request, such as `mtlbench run --preset glue/quick --methods lora`.\n"
    yield "Options that are given win.\n"
    found = {name for suite in offers("tasks") for name in load_suite(suite).presets}
    found |= {name for method in offers("methods") for name in load_method(method).presets}
    for name in sorted(found):
        yield f"## {name}\n\n```\n" + "\n".join(list(shown(name))[1:]) + "\n```\n"


def contracts() -> Iterator[str]:
    """Hooks, and the classes that plugins write or get."""
    from mtlbench.api import backbone, executor, hooks, method, report, study, task

    yield "# Contracts of plugins\n"
    yield "How to write a plugin, with examples: [plugins](../plugins.md).\n"
    yield "## Hooks\n"
    for kind in (hooks.NounHooks, hooks.EventHooks):
        yield f"{prose(inspect.getdoc(kind))}\n"
        for name, function in vars(kind).items():
            if name.startswith("mtlbench_"):
                yield from _function(name, function, level=3)
    for owner in (method, task, backbone, report, study, executor):
        for name, found in vars(owner).items():
            if inspect.isclass(found) and found.__module__ == owner.__name__ and not name.startswith("_"):
                yield from _class(name, found)


def toolkit() -> Iterator[str]:
    """Every name of ``mtlbench.nn``."""
    from mtlbench import nn

    yield "# Names of mtlbench.nn\n"
    yield "Which of them serves what, with examples that run: [the layer toolkit](../nn.md).\n"
    yield from _names(nn)


def interface() -> Iterator[str]:
    """Functions and classes that ``import mtlbench`` offers for running and reading."""
    import mtlbench

    yield "# Python\n"
    yield "A walk through it: [from Python](../python.md).\n"
    listed = ("plan", "run", "load", "load_adapter", "check", "published_tables")
    for name in listed:
        yield from _function(name, getattr(mtlbench, name), level=2)
    yield from _class("Study", import_module("mtlbench.interface.study").Study)
    yield from _class("Adapter", type_of_adapter())


def type_of_adapter() -> type:
    """What ``mtlbench.load_adapter`` returns."""
    import mtlbench

    found: type = get_type_hints(mtlbench.load_adapter)["return"]
    return found


def _names(module: Any) -> Iterator[str]:
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isclass(found):
            yield from _class(name, found)
        elif inspect.isfunction(found):
            yield from _function(name, found, level=2)
        else:
            yield f"## {name}\n\n```python\n{name}: {type(found).__name__}\n```\n"


def _class(name: str, found: type) -> Iterator[str]:
    yield f"## {name}\n\n{prose(inspect.getdoc(found))}\n"
    yield from _fields(found)
    for member, value in vars(found).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not member.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield from _function(f"{name}.{member}", function, level=3, bare=isinstance(value, property))


def _function(name: str, function: Any, *, level: int, bare: bool = False) -> Iterator[str]:
    yield f"{'#' * level} {name}\n"
    if not bare:
        signature = inspect.signature(function)
        listed = [p for n, p in signature.parameters.items() if n != "self"]
        text = f"{name.rpartition('.')[2]}{signature.replace(parameters=listed)}".replace("'", "")
        if len(text) > 100:
            inner = ",\n    ".join(str(p).replace("'", "") for p in listed)
            text = f"{name.rpartition('.')[2]}(\n    {inner},\n)"
        yield f"```python\n{text}\n```\n"
    yield f"{prose(inspect.getdoc(function))}\n"


def _fields(owner: type) -> Iterator[str]:
    """Annotated fields with type, default and the string below each."""
    described = _described(owner)
    defaults = {}
    if is_dataclass(owner):
        for field in fields(owner):
            has = field.default is not MISSING
            defaults[field.name] = repr(field.default) if has else "" if field.default_factory is MISSING else "empty"
    rows = [
        (f"`{name}`", f"`{kind}`", f"`{defaults[name]}`" if defaults.get(name) else "", prose(text))
        for name, (kind, text) in described.items()
        if not name.startswith("_")
    ]
    yield from _table(("field", "type", "default", "meaning"), rows)


def _described(owner: type) -> dict[str, tuple[str, str]]:
    try:
        tree = ast.parse(dedent(inspect.getsource(owner)))
    except (OSError, TypeError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for statement, below in pairwise([*body, None]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = below.value if isinstance(below, ast.Expr) else None
            text = value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
            found[statement.target.id] = (ast.unparse(statement.annotation), " ".join(text.split()))
    return found


def prose(text: str | None) -> str:
    """A docstring as Markdown: roles and double backquotes become code, sections become bold."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text or "")
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)
    parts = re.split(r"^(Raises|Args|Returns|Yields|Attributes):\n", text, flags=re.MULTILINE)
    for number in range(2, len(parts), 2):
        parts[number] = _entries(parts[number])
        parts[number - 1] = f"**{parts[number - 1]}**\n\n"
    return "".join(parts)


def _entries(text: str) -> str:
    """The indented lines of a section as a list; what follows them stays."""
    lines = []
    for line in text.splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            lines.append(f"- {line.strip()}")
        else:
            lines.append(line[2:] if line.startswith("     ") else line)
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    if lines:
        yield "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines]) + "\n"


def _cell(text: str) -> str:
    """Outside of code, bars end a cell and angle brackets begin a tag, so they are escaped."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [part.replace("|", "\\|").replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)

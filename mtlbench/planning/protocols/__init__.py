"""Named protocols: the fields of a :class:`~mtlbench.api.cell.Protocol` as data.

A protocol is a TOML file beside this module, a file named by its path, or data of a suite or a method
(``TaskSuite.protocols``, ``Method.protocols``). ``about`` says what it is, ``base`` names one to start from, and all
else are fields. A protocol that was released is not changed: the tests hold the hash of each.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from mtlbench.api.cell import Protocol
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.plugins import load_method, load_suite, offers

STANDARD = "standard"
"""The protocol of a request that names none."""
FOLDER = Path(__file__).parent
SETTABLE = tuple(f.name for f in fields(Protocol) if f.name not in ("name", "data", "prompts"))
"""Fields that a named protocol may set."""


def names() -> tuple[str, ...]:
    """The protocols that come with mtlbench."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def about(name: str) -> str:
    """What the protocol ``name`` is, in one line."""
    return str(_definition(name).get("about", ""))


def fields_of(name: str) -> dict[str, Any]:
    """The fields that the protocol ``name`` sets, those of its base included.

    Raises:
        RequestError: there is no such protocol, it sets what is no field, or its bases go in a circle.
    """
    found: dict[str, Any] = {}
    seen: list[str] = []
    word: str | None = name
    while word is not None:
        if word in seen:
            raise RequestError(f"The protocol {name!r} is based on itself: {' -> '.join([*seen, word])}.")
        seen.append(word)
        definition = dict(_definition(word))
        definition.pop("about", None)
        base = definition.pop("base", None)
        for field in definition:
            if field not in SETTABLE:
                raise RequestError(f"The protocol {word!r} sets {field!r}. {did_you_mean(field, SETTABLE)}")
        found = overlaid(definition, found)
        word = base
    return found


def overlaid(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the fields ``given``; epochs that are given put steps of the base out of force."""
    stale = {f"{stage}steps" for stage in ("", "adapt_") if f"{stage}epochs" in given}
    return {**{name: value for name, value in base.items() if name not in stale}, **given}


def _definition(name: str) -> Mapping[str, Any]:
    if name.endswith(".toml"):
        return _read(Path(name))
    if name in names():
        return _read(FOLDER / f"{name}.toml")

    own, known = carried("protocols", name)
    if own is None:
        known = {*names(), *known}
        raise RequestError(f"Unknown protocol {name!r}. {did_you_mean(name, known)} Or name a file NAME.toml.")
    return own


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"The protocol {str(path)!r} cannot be read: {error.strerror}. Name a TOML file.") from error
    except ValueError as error:
        raise RequestError(f"The protocol {str(path)!r} is no TOML: {error}.") from error


def carried(kind: Literal["presets", "protocols"], name: str) -> tuple[Mapping[str, Any] | None, set[str]]:
    """What the plugins carry under ``name``, and all names among which it was looked for."""
    first = name.partition("/")[0]
    suites, methods = offers("tasks"), offers("methods")
    known: dict[str, Mapping[str, Any]] = {}
    if first in methods:
        known.update(getattr(load_method(first), kind))
    for suite in [first] if first in suites else []:
        known.update(getattr(load_suite(suite), kind))
    for suite in [] if name in known else suites:
        for key, value in getattr(load_suite(suite), kind).items():
            known.setdefault(key, value)
    return known.get(name), set(known)

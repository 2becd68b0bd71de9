"""Named requests: options of the command line that a suite or a method carries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtlbench.errors import RequestError, did_you_mean
from mtlbench.planning.protocols import overlaid
from mtlbench.plugins import carried, offers

OF_THE_COMMAND = ("parts", "notes", "reports")
"""Keys of a preset that are no option of a request: several requests, lines to print, reports to end in."""
BETWEEN = re.compile(r",(?![^\[]*\])")
"""A comma between methods, not inside the brackets of one."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The requests of a preset."""

    parts: tuple[Mapping[str, Any], ...]
    """One or more requests, options by name: a table of a paper may need several."""
    notes: tuple[str, ...] = ()
    """What its user should know."""


def preset(name: str) -> Mapping[str, Any]:
    """The options of the preset ``name``: of the suite or the method that its first part names, or of any suite.

    Raises:
        RequestError: there is no such preset.
    """
    options, known = carried("presets", name)
    if options is None:
        raise RequestError(f"Unknown preset {name!r}. {did_you_mean(name, known)}")
    return options


def open_preset(name: str, given: Mapping[str, Any]) -> Preset:
    """The requests of the preset ``name``; options ``given`` win in each of them.

    Methods of the preset that no installed package offers are left out, and a note says so.

    Raises:
        RequestError: there is no such preset, or none of its methods is installed and none is given.
    """
    options = preset(name)
    common = {option: value for option, value in options.items() if option not in OF_THE_COMMAND}
    missing: dict[str, None] = {}
    parts = []
    for part in options.get("parts", ({},)):
        merged = {**common, **part}
        if "methods" in merged and "methods" not in given:
            merged["methods"], absent = _installed(merged["methods"])
            missing.update(dict.fromkeys(absent))
        parts.append(overlaid(merged, given))
    notes = [f"{name}: {note}" for note in options.get("notes", ())]
    if missing:
        notes.append(f"{name}: left out, as no installed package offers them: {', '.join(missing)}.")
    if not all(part.get("methods", "-") for part in parts):
        raise RequestError(
            f"None of the methods of preset {name!r} is installed ({', '.join(missing)}). Install a package that "
            "offers them, or give --methods."
        )
    return Preset(parts=tuple(parts), notes=tuple(notes))


def preset_reports(name: str | None) -> str | None:
    """Reports that a preset ends in, as ``--as`` takes them."""
    return preset(name).get("reports") if name else None


def _installed(methods: str) -> tuple[str, list[str]]:
    """The methods that are installed, and the others."""
    known = offers("methods")
    installed: list[str] = []
    absent: list[str] = []
    for method in BETWEEN.split(methods):
        members = method.partition("[")[0].split("+")
        (installed if all(member in known for member in members) else absent).append(method)
    return ",".join(installed), absent

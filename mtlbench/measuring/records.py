"""Measured rows on disk: one JSON file each; rows of different hardware are never shown together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlbench.errors import RequestError, StoreError
from mtlbench.files.sealed import overwrite

SCHEMA = 1
"""Version of the layout of a file."""
Measured = Mapping[str, Any]
"""What a row's file holds: ``row``, ``status``, ``hardware``, ``conditions`` and a part for each thing measured."""


def write_measured(folder: Path, name: str, measured: Measured) -> Path:
    """Write a row, in place of an earlier measurement of the same."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    overwrite(path, json.dumps({"schema": SCHEMA, **measured}, indent=1).encode())
    return path


def read_measured(folder: Path) -> list[Measured]:
    """Every row of a folder, in the order they were measured.

    Raises:
        StoreError: a file is damaged or of a newer version.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            body = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise StoreError(f"The measurement {str(path)!r} cannot be read: {error}. Measure it again.") from error
        if body.get("schema") != SCHEMA:
            raise StoreError(f"{str(path)!r} has schema {body.get('schema')}, this version reads {SCHEMA}.")
        found.append(body)
    return sorted(found, key=lambda body: str(body["measured"]))


def check_hardware(rows: Iterable[Measured]) -> None:
    """Times and memory of different hardware say nothing about methods.

    Raises:
        RequestError: rows come from different hardware; names the fields that differ.
    """
    hardware: Sequence[Mapping[str, Any]] = [row["hardware"] for row in rows if row.get("hardware")]
    names = dict.fromkeys(name for one in hardware for name in one)
    seen = {name: sorted({str(one.get(name)) for one in hardware}) for name in names}
    differing = [f"{name} ({' and '.join(values)})" for name, values in seen.items() if len(values) > 1]
    if differing:
        raise RequestError(
            f"These rows were measured on different hardware and cannot be compared: {'; '.join(differing)}. "
            "Measure all of them on one machine, each into a folder of its own with --out."
        )

"""Reading a paper's JSON file; errors in the schema name file, table and row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlbench.errors import DataError, did_you_mean
from mtlbench.published.claims import WAYS, check_claim
from mtlbench.published.paper import (
    METRICS,
    UNITS,
    Paper,
    PublishedClaim,
    PublishedColumn,
    PublishedRow,
    PublishedTable,
)

SCHEMA = 1
"""Version of the layout of a file."""
_PAPER = {
    "schema": int,
    "paper": str,
    "title": str,
    "source": str,
    "tables": list,
    "claims": list,
    "notes": list,
    "splits": dict,
}
_TABLE = {
    "name": str, "caption": str, "unit": str, "decimals": int, "columns": list, "rows": list, "backbone": str,
    "models": list, "notes": list, "train_rows": int,
}  # fmt: skip
_COLUMN = {"name": str, "metric": str, "task": str, "note": str}
_ROW = {
    "name": str, "values": list, "average": (int, float), "method": str, "backbone": str, "models": list,
    "parameters": str, "k_shot": str, "copied_from": str, "train_rows": int,
}  # fmt: skip
_CLAIM = {"what": str, "where": str, "value": str, "unit": str, "follows": str, "of": list}
_NEEDED = ("schema", "paper", "title", "source", "tables", "name", "caption", "unit", "decimals", "columns", "rows")


def read_paper(path: Path) -> Paper:
    """The paper in a JSON file.

    Raises:
        DataError: the file cannot be read or does not fit the schema.
    """
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"The published tables in {str(path)!r} cannot be read: {error}.") from error
    where = str(path)
    _fields(body, _PAPER, where, needed=_NEEDED[:5])
    if body["schema"] != SCHEMA:
        raise DataError(f"{where}: schema {body['schema']} is unknown to this version, which reads {SCHEMA}.")
    name = body["paper"]
    if not name or not all(c.isalnum() or c in "_-" for c in name):
        raise DataError(f"{where}: paper must be letters, digits, '_' and '-', got {name!r}.")
    tables = tuple(_table(table, name, f"{where}, table {at}") for at, table in enumerate(body["tables"], 1))
    _check_unique([table.name for table in tables], f"{where}: the table")
    return Paper(
        name=name,
        title=body["title"],
        source=body["source"],
        tables=tables,
        claims=tuple(_claim(claim, f"{where}, claim {at}") for at, claim in enumerate(body.get("claims", []), 1)),
        notes=_texts(body.get("notes", []), f"{where}: notes"),
        splits=_splits(body.get("splits", {}), where),
    )


def _table(body: Any, paper: str, where: str) -> PublishedTable:
    _fields(body, _TABLE, where, needed=_NEEDED[5:])
    where = f"{where} ({body['name']})"
    if body["unit"] not in UNITS:
        raise DataError(f"{where}: unit {body['unit']!r} is unknown. {did_you_mean(body['unit'], UNITS)}")
    columns = tuple(_column(column, f"{where}, column {at}") for at, column in enumerate(body["columns"], 1))
    _check_unique([column.name for column in columns], f"{where}: the column")
    rows = tuple(
        _row(row, body, len(columns), f"{where}, row {at}", largest=100 / UNITS[body["unit"]])
        for at, row in enumerate(body["rows"], 1)
    )
    return PublishedTable(
        paper=paper,
        name=body["name"],
        caption=body["caption"],
        unit=body["unit"],
        decimals=body["decimals"],
        columns=columns,
        rows=rows,
        notes=_texts(body.get("notes", []), f"{where}: notes"),
    )


def _column(body: Any, where: str) -> PublishedColumn:
    _fields(body, _COLUMN, where, needed=("name", "metric"))
    if body["metric"] not in METRICS:
        raise DataError(f"{where}: metric {body['metric']!r} is unknown. {did_you_mean(body['metric'], METRICS)}")
    return PublishedColumn(**body)


def _row(body: Any, table: Mapping[str, Any], columns: int, where: str, *, largest: float) -> PublishedRow:
    _fields(body, _ROW, where, needed=("name", "values"))
    where = f"{where} ({body['name']})"
    values = body["values"]
    if len(values) != columns:
        raise DataError(f"{where}: {len(values)} values for {columns} columns; write null where nothing is printed.")
    for value in [*values, body.get("average")]:
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not -largest <= value <= largest:
            raise DataError(f"{where}: {value!r} is no {table['unit']}; numbers go from -{largest:g} to {largest:g}.")
    backbone = body.get("backbone", table.get("backbone"))
    if not backbone:
        raise DataError(f"{where}: no backbone, neither of the row nor of the table.")
    models = _texts(body.get("models", table.get("models", [])), f"{where}: models")
    train_rows = body.get("train_rows", table.get("train_rows"))
    if train_rows is not None and train_rows < 1:
        raise DataError(f"{where}: 'train_rows' must be at least 1, got {train_rows}.")
    given = {"values": tuple(values), "backbone": backbone, "models": models, "train_rows": train_rows}
    return PublishedRow(**{**body, **given})


def _claim(body: Any, where: str) -> PublishedClaim:
    _fields(body, _CLAIM, where, needed=("what", "where", "value"))
    claim = PublishedClaim(**{**body, "of": _texts(body.get("of", []), f"{where}: of")})
    if claim.follows and claim.follows not in WAYS:
        raise DataError(f"{where}: follows {claim.follows!r} is unknown. {did_you_mean(claim.follows, WAYS)}")
    check_claim(claim, where)
    return claim


def _fields(body: Any, known: Mapping[str, Any], where: str, *, needed: Sequence[str]) -> None:
    if not isinstance(body, dict):
        raise DataError(f"{where}: an object is needed, got {body!r}.")
    for name in needed:
        if name not in body:
            raise DataError(f"{where}: {name!r} is missing.")
    for name, value in body.items():
        if name not in known:
            raise DataError(f"{where}: the field {name!r} is unknown. {did_you_mean(name, known)}")
        kind = known[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            names = "a number" if isinstance(kind, tuple) else {"str": "text", "int": "a whole number"}
            expected = names if isinstance(names, str) else names.get(kind.__name__, f"a JSON {kind.__name__}")
            raise DataError(f"{where}: {name!r} must be {expected}, got {value!r}.")


def _splits(body: Mapping[str, Any], where: str) -> dict[str, dict[str, int]]:
    for task, sizes in body.items():
        good = isinstance(sizes, dict) and all(type(n) is int and n > 0 for n in sizes.values())
        if not good:
            raise DataError(f"{where}: splits of {task!r} must be names with numbers of rows, got {sizes!r}.")
    return {task: dict(sizes) for task, sizes in body.items()}


def _texts(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where} must be a list of texts, got {values!r}.")
    return tuple(values)


def _check_unique(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{what} {twice[0]!r} is there twice.")

"""Records of one variant that differ in protocol, backbone or tasks: how to name the one that is meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from mtlbench.api.cell import Cell, canonical
from mtlbench.api.record import Record
from mtlbench.errors import RequestError
from mtlbench.text import local_name, one_line, seed_list, tasks_label


def named_records(records: Iterable[Record], *, protocol: str | None = None, key: str | None = None) -> list[Record]:
    """The records of a protocol and with a key.

    Args:
        protocol: Start of a protocol's hash, as tables and ``status`` show it, or a protocol's name.
        key: Start of a cell's key.

    Raises:
        RequestError: no record has them; the message names those that are there.
    """
    records = list(records)
    found = [
        record
        for record in records
        if (key is None or record.key.startswith(key))
        and (protocol is None or record.cell.protocol.hash().startswith(protocol) or _named(record.cell, protocol))
    ]
    if records and not found:
        wanted = " and ".join(f"{what} {given!r}" for what, given in (("protocol", protocol), ("key", key)) if given)
        raise RequestError(f"No finished cell has the {wanted}. Here are: {told_apart(records)}.")
    return found


def told_apart(records: Sequence[Record]) -> str:
    """What distinguishes the records, protocol by protocol: fields, seeds and the starts of keys."""
    cells = [record.cell for record in records]
    values = [_values(cell) for cell in cells]
    differing = [name for name in values[0] if len({canonical(value[name]) for value in values}) > 1]
    groups: dict[str, list[Cell]] = {}
    for cell, value in zip(cells, values, strict=True):
        fields = ", ".join(f"{name}={one_line(str(value[name]))}" for name in differing)
        label = f"protocol {cell.protocol.hash()}{f' ({fields})' if fields else ''}"
        groups.setdefault(label, []).append(cell)
    return "; ".join(
        f"{label}: seeds {seed_list(sorted({cell.seed for cell in of}))}, key {', '.join(cell.key[:8] for cell in of)}"
        for label, of in groups.items()
    )


def group_of(record: Record) -> str:
    """Equal for records that differ in nothing but method, settings, versions and seed."""
    cell = record.cell
    return canonical([cell.weights or cell.model, list(cell.tasks), cell.protocol.hash()])


def _named(cell: Cell, protocol: str) -> bool:
    return bool(cell.protocol.name) and cell.protocol.name == protocol


def _values(cell: Cell) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(cell.protocol).items() if name != "name"}
    return {**fields, "model": local_name(cell.model), "weights": cell.weights, "tasks": tasks_label(cell.tasks)}

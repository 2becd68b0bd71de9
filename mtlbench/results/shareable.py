"""Records as they may leave the house: local folders by their names, nothing of the author's directories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from mtlbench.api.cell import Cell
from mtlbench.api.record import Notes, Provenance, Record
from mtlbench.text import local_name, without_directories


def shared_names(cells: Iterable[Cell]) -> Callable[[Cell], Cell]:
    """Gives a cell with its local backbone named by the folder, with the weights' digest where two share a name."""
    paths: dict[str, set[str]] = {}
    for cell in cells:
        paths.setdefault(local_name(cell.model), set()).add(cell.model)

    def named(cell: Cell) -> Cell:
        name = local_name(cell.model)
        if cell.model == name:
            return cell
        return cell.named(name if len(paths.get(name, ())) < 2 else f"{name} ({cell.weights[:8] or 'local'})")

    return named


def shareable(record: Record, named: Callable[[Cell], Cell]) -> Record:
    """The record under the name of ``named``, without directories in its texts; its key stays."""
    failure = record.failure
    if failure is not None:
        failure = replace(
            failure,
            message=without_directories(failure.message),
            next_step=without_directories(failure.next_step),
            frames=tuple(map(without_directories, failure.frames)),
        )
    return replace(
        record,
        cell=named(record.cell),
        failure=failure,
        notes=cast(Notes, _plain(record.notes)),
        provenance=cast(Provenance, _plain(record.provenance)),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return without_directories(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value

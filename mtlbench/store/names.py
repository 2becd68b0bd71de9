"""Names in files that may come from somebody else: they are printed on terminals and put into tables."""

from __future__ import annotations

from mtlbench.api.cell import Cell


def printable(cell: Cell) -> Cell:
    """The cell as it is.

    Raises:
        ValueError: one of its names holds control characters.
    """
    for name in (cell.method, cell.model, *cell.tasks, *cell.settings, *map(str, cell.settings.values())):
        if not name.isprintable():
            raise ValueError(f"the name {name!r} holds control characters")
    return cell

"""The cells of a table in the order of rows and seeds, with the places they have on the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.api.study import Row, Table


@dataclass(frozen=True, kw_only=True)
class Line:
    """One cell of a row."""

    row: Row
    cell: Cell
    record: Record | None
    key: str
    """The cell's; digesting a cell for it takes long enough to do it once."""
    place: str | None
    """Name of the row's place on the page, where this is its first line."""

    @property
    def status(self) -> str:
        """``ok``, ``failed``, ``skipped`` or ``missing``."""
        return self.record.status if self.record else "missing"

    @property
    def details(self) -> str:
        """Name of the place that tells all about the cell."""
        return f"cell-{self.key}"

    @property
    def reason(self) -> str:
        """Why the cell has no scores, or nothing."""
        if self.record is None:
            return "no record yet"
        if self.record.status == "ok":
            return ""
        failure = self.record.failure
        return f"{failure.kind}: {failure.message}" if failure else "no reason was recorded"


def lines(table: Table, *, anchor: str) -> list[Line]:
    """The cells of all rows; the place of row ``n`` is ``<anchor>-<n>``."""
    found = []
    for number, row in enumerate(table.rows):
        held: list[tuple[Cell, Record | None]] = [(record.cell, record) for record in row.records]
        for at, (cell, record) in enumerate([*held, *((cell, None) for cell in row.missing)]):
            place = None if at else f"{anchor}-{number}"
            found.append(Line(row=row, cell=cell, record=record, key=cell.key, place=place))
    return found


def links(told: Iterable[Line]) -> dict[str, str]:
    """Row label to where its cells are: the details of its only one, otherwise its first line in the table of cells."""
    first = [line for line in told if line.place]
    return {line.row.label: f"#{line.details if line.row.planned == 1 else line.place}" for line in first}

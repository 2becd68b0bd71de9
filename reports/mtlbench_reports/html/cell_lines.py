"""The cells of a table in the order of rows and seeds, with their anchors on the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.api.study import Row, Table


@dataclass(frozen=True, kw_only=True)
class CellLine:
    """One cell of a row."""

    row: Row
    cell: Cell
    record: Record | None
    key: str
    """The cell's key, computed once because it is slow."""
    anchor: str | None
    """The row's anchor on the page, if this is its first line."""

    @property
    def status(self) -> str:
        """``ok``, ``failed``, ``skipped`` or ``missing``."""
        return self.record.status if self.record else "missing"

    @property
    def details(self) -> str:
        """Anchor of the cell's details."""
        return f"cell-{self.key}"

    @property
    def reason(self) -> str:
        """The reason why the cell has no scores, or an empty text."""
        if self.record is None:
            return "no record yet"
        if self.record.status == "ok":
            return ""
        failure = self.record.failure
        return f"{failure.kind}: {failure.message}" if failure else "no reason was recorded"


def lines(table: Table, *, anchor: str) -> list[CellLine]:
    """The cells of all rows; the anchor of row ``n`` is ``<anchor>-<n>``."""
    cell_lines = []
    for number, row in enumerate(table.rows):
        recorded: list[tuple[Cell, Record | None]] = [(record.cell, record) for record in row.records]
        for at, (cell, record) in enumerate([*recorded, *((cell, None) for cell in row.missing)]):
            line_anchor = None if at else f"{anchor}-{number}"
            cell_lines.append(CellLine(row=row, cell=cell, record=record, key=cell.key, anchor=line_anchor))
    return cell_lines


def links(cell_lines: Iterable[CellLine]) -> dict[str, str]:
    """Row label to a link to its cells: the details of its only cell, or its first line in the table of cells."""
    first = [line for line in cell_lines if line.anchor]
    return {line.row.label: f"#{line.details if line.row.planned == 1 else line.anchor}" for line in first}

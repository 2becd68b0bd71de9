"""The table of all cells, one line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtlbench.api.study import Table
from mtlbench.results.formatting import NONE
from mtlbench.text import duration, memory
from mtlbench_reports.html.cell_lines import CellLine
from mtlbench_reports.html.markup import Markup, el
from mtlbench_reports.html.tables import grid, head, number, task_heads


def cells(table: Table, lines: Sequence[CellLine]) -> Markup:
    """The cells of a table, with the reasons of those without scores."""
    troubled = any(line.reason for line in lines)
    header = [
        head("method", number=False),
        head("seed"),
        head("status", number=False),
        head("reason", number=False) if troubled else None,
        *task_heads(table),
        head("average"),
        head("training"),
        head("peak memory"),
    ]
    rows = [el("tr", _cells(line, table.tasks, troubled), id=line.anchor, class_=line.status) for line in lines]
    return grid(header, rows, name="Cells")


def _cells(line: CellLine, tasks: Sequence[str], troubled: bool) -> Iterator[Markup]:
    record = line.record

    def linked(text: str) -> Markup:
        return el("a", text, href=f"#{line.details}")

    yield el("th", linked(line.row.label), scope="row")
    yield number(linked(str(line.cell.seed)), line.cell.seed)
    yield el("td", line.status)
    if troubled:
        yield el("td", line.reason, class_="reason")
    scores = record.scores if record else {}
    for task in tasks:
        score = scores[task].score if task in scores else None
        yield number(NONE if score is None else linked(f"{score:.1f}"), score)
    average = record.average if record and set(tasks) <= set(scores) else None
    yield number(NONE if average is None else linked(f"{average:.1f}"), average)
    costs = record.costs if record else None
    yield number(duration(costs.train_seconds) if costs else NONE, costs.train_seconds if costs else None)
    peak = costs.peak_memory if costs else None
    yield number(NONE if peak is None else memory(peak), peak)

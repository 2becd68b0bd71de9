"""The scores of one table as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from mtlbench.api.study import Entry, Study, Table
from mtlbench.results.formatting import (
    FOREIGN,
    FOREIGN_HEADER,
    NONE,
    counts,
    foreign_cells,
    foreign_notes,
    legend,
    marks,
    mean,
    short_names,
    troubles,
)
from mtlbench.text import aligned

BEST = "*"
"""Mark of the best mean where nothing can be printed in bold."""
_MARKED, _BOLD = f"marked {BEST}", "in bold"


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores by row and task, the average first. ``print`` shows it, and a notebook does so by itself."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """One cell for each column of the header."""
    best: tuple[tuple[bool, ...], ...]
    """Which cells hold the best mean of their column."""
    notes: tuple[str, ...]
    """The meaning of numbers and marks, then cells without scores, then the notes of the table."""

    def lines(self, width: int | None = None) -> Iterator[str]:
        """Lines of at most ``width`` characters where the columns allow it: the others follow below, after the rows'
        names again. By default as wide as the terminal."""
        width = width or shutil.get_terminal_size().columns
        marked = [
            tuple(f"{cell}{BEST}" if best else cell for cell, best in zip(cells, bests, strict=True))
            for cells, bests in zip(self.rows, self.best, strict=True)
        ]
        grid = [self.header, *marked]
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        yield self.title
        for number, block in enumerate(_blocks(widths, width)):
            yield from ([""] if number else [])
            yield from aligned([[cells[0], *(cells[at] for at in block)] for cells in grid])
        yield from self.notes

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
        body = "".join(
            "<tr>"
            + "".join(
                f"<td><b>{escape(cell)}</b></td>" if best else f"<td>{escape(cell)}</td>"
                for cell, best in zip(cells, bests, strict=True)
            )
            + "</tr>"
            for cells, bests in zip(self.rows, self.best, strict=True)
        )
        notes = "".join(f"<p>{escape(note.replace(_MARKED, _BOLD))}</p>" for note in self.notes)
        return f"<h4>{escape(self.title)}</h4><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def score_table(table: Table) -> ScoreTable:
    """The scores of a table with the marks of the reports."""
    names = short_names(table.tasks)
    rows, best = [], []
    for row in table.rows:
        entries = [row.average, *(row.entries.get(task) for task in table.tasks)]
        rows.append((row.label, *map(_text, entries)))
        best.append((False, *(entry is not None and entry.best for entry in entries)))
    missing = [f"{row.label} {line}" for row in table.rows for line in troubles(row)]
    scored = any(row.seeds for row in table.rows)
    return ScoreTable(
        title=table.title,
        header=("method", "average", *names),
        rows=tuple(rows),
        best=tuple(best),
        notes=(*([legend(table, best=_MARKED)] if scored else []), *missing, *table.notes),
    )


def study_lines(study: Study, *, width: int | None = None) -> Iterator[str]:
    """All score tables of a study, for a terminal."""
    yield from study.notes
    for number, table in enumerate(study.tables):
        yield from ([""] if number or study.notes else [])
        yield from score_table(table).lines(width)
    if study.foreign:
        yield from ("", FOREIGN, *aligned([FOREIGN_HEADER, *foreign_cells(study.foreign)], left=range(4)))
        yield from foreign_notes(study.foreign)


def study_html(study: Study) -> str:
    """All score tables of a study, for a notebook."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in study.notes)
    tables = "".join(score_table(table)._repr_html_() for table in study.tables)
    foreign = _foreign_html(study) if study.foreign else ""
    return f"<p>{escape(study.title)}. {escape(counts(study.counts))}</p>{notes}{tables}{foreign}"


def _foreign_html(study: Study) -> str:
    lines = [FOREIGN_HEADER, *foreign_cells(study.foreign)]
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    notes = "".join(f"<p>{escape(note)}</p>" for note in foreign_notes(study.foreign))
    return f"<h4>Foreign rows</h4><p>{escape(FOREIGN)}</p><table>{rows}</table>{notes}"


def _text(entry: Entry | None) -> str:
    return mean(entry.scores) + marks(entry) if entry else NONE


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Columns after the first in blocks that fit beside it, at least one in each."""
    blocks: list[list[int]] = [[]]
    used = widths[0]
    for at in range(1, len(widths)):
        if blocks[-1] and used + 2 + widths[at] > width:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(at)
        used += 2 + widths[at]
    return blocks

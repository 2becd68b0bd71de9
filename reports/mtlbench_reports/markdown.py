"""``report.md``: GitHub-flavoured tables that are also readable as plain text in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from unicodedata import combining, east_asian_width

from mtlbench import Report, hookimpl
from mtlbench.api.study import Entry, Row, Study, Table
from mtlbench.results.analyses.calibration import LEGEND, calibrated_rows, calibration_columns
from mtlbench.results.analyses.interference import BALANCE_LEGEND, balances
from mtlbench.results.analyses.probing import forgetting_columns, forgetting_legend, probed
from mtlbench.results.analyses.sweeps import sweep_columns, sweep_legend, sweeps_in
from mtlbench.results.circumstances import equal_for_all_rows
from mtlbench.results.columns import (
    NumberColumn,
    cost_columns,
    difference_columns,
    difference_legend,
    over_tasks_columns,
    over_tasks_legend,
)
from mtlbench.results.formatting import (
    FOREIGN,
    FOREIGN_HEADER,
    NONE,
    counts,
    flags,
    foreign_cells,
    foreign_notes,
    legend,
    marks,
    mean,
    metrics_of,
    short_names,
    troubles,
)
from mtlbench.results.tuned import tuning_columns, tuning_legend


class Markdown(Report):
    """One document; each table of the study has scores, differences, costs and problems."""

    name = "markdown"
    on_terminal = True

    def render(self, study: Study) -> Mapping[str, str]:
        sections = [f"# {_escape(study.title)}", counts(study.counts), _bullets(study.notes)]
        for sweep in sweeps_in(study.tables):
            sections += _columns(sweep_columns(sweep), sweep.rows, _escape(sweep_legend(sweep)))
        alone = len(study.tables) == 1 and study.tables[0].title == study.title
        for table in study.tables:
            sections.extend([] if alone else [f"## {_escape(table.title)}"])
            sections.extend(_sections(table, calibration=study.shows_calibration))
        if study.foreign:
            cells = [list(map(_escape, line)) for line in foreign_cells(study.foreign)]
            sections += [
                "## Foreign rows",
                FOREIGN,
                _grid(FOREIGN_HEADER, cells),
                _bullets(foreign_notes(study.foreign)),
            ]
        return {"report.md": "\n\n".join(filter(None, sections)) + "\n"}


@hookimpl
def mtlbench_reports() -> Iterable[Report]:
    return [Markdown()]


def _sections(table: Table, *, calibration: bool) -> Iterator[str]:
    if any(row.seeds for row in table.rows):
        names = [
            f"{name} ({metrics})" if (metrics := metrics_of(table, task)) else name
            for name, task in zip(short_names(table.tasks), table.tasks, strict=True)
        ]
        tuning = [tuning_columns(table)[0]] if table.searches else []
        rows = [
            [_escape(row.label), *(_escape(column.text(row)) for column in tuning), *_scores(row, table.tasks)]
            for row in table.rows
        ]
        yield _grid(["method", *("tuning" for _ in tuning), *map(_escape, names), "average"], rows)
        yield _escape(legend(table))
        tuned = [row for row in table.rows if row.tuned]
        yield from _columns(tuning_columns(table), tuned, _escape(tuning_legend(table)))
        yield from _columns(difference_columns(table), _compared(table), _escape(difference_legend(table)))
        over = over_tasks_columns(table)
        yield from _columns(over, [row for row in table.rows if row.rank is not None], over_tasks_legend(over))
        yield from _columns(forgetting_columns(table), probed(table), _escape(forgetting_legend(table)))
        for label, balance in balances(table).items():
            header, lines = balance.cells()
            yield _escape(f"Balance of {label}: {BALANCE_LEGEND}.")
            yield _grid(list(map(_escape, header)), [list(map(_escape, line)) for line in lines])
        if calibration:
            yield from _columns(calibration_columns(table), calibrated_rows(table), _escape(LEGEND))
        costs = [row for row in table.rows if row.costs]
        yield from _columns(cost_columns(table), costs, "Costs, means over seeds (peak memory: the highest):")
    yield _bullets(table.notes)
    flagged = [f"{row.label}: {line}." for row in table.rows for line in flags(row)]
    yield f"Degenerate runs:\n\n{_bullets(flagged)}" if flagged else ""
    troubled = [f"{row.label} {line}" for row in table.rows for line in troubles(row)]
    yield f"Failed, skipped and missing cells:\n\n{_bullets(troubled)}" if troubled else ""
    yield _escape(equal_for_all_rows(table))


def _compared(table: Table) -> list[Row]:
    return [row for row in table.rows if row.comparison]


def _columns(columns: Sequence[NumberColumn], rows: Sequence[Row], caption: str) -> Iterator[str]:
    if columns and rows:
        yield caption
        lines = [[_escape(row.label), *(_escape(column.text(row)) for column in columns)] for row in rows]
        yield _grid(["method", *(_escape(column.name) for column in columns)], lines)


def _scores(row: Row, tasks: Sequence[str]) -> Iterator[str]:
    for entry in (*(row.entries.get(task) for task in tasks), row.average):
        yield _entry(entry) if entry else NONE


def _entry(entry: Entry) -> str:
    text = mean(entry.scores)
    return (f"**{text}**" if entry.best else text) + marks(entry)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _escape(text: str) -> str:
    """Text from plugins and users as one line of Markdown without markup; ``mtl_lora[rank=8]`` is unchanged."""
    line = " ".join(text.split())
    line = re.sub(r"[\\|<*`~$&]", r"\\\g<0>", line).replace("](", r"]\(")
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", line)


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with padded cells: the first column to the left, numbers to the right."""
    widths = [max(map(_width, column)) for column in zip(header, *rows, strict=True)]
    widths = [max(width, 3) for width in widths]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(_padded(row, widths)) + " |" for row in (header, rule, *rows))


def _padded(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
        space = " " * (width - _width(cell))
        yield space + cell if at else cell + space


def _width(text: str) -> int:
    """Columns of a terminal."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)

"""The tables of rows: scores, differences to the reference, costs. Every score links to its cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from mtlbench.api.study import Entry, Row, Study, Table
from mtlbench.results.analyses.calibration import LEGEND, calibrated_rows, calibration_columns
from mtlbench.results.analyses.interference import BALANCE_LEGEND, balances
from mtlbench.results.analyses.probing import forgetting_columns, forgetting_legend, probed
from mtlbench.results.analyses.sweeps import sweep_columns, sweep_legend, sweeps_in
from mtlbench.results.columns import (
    NumberColumn,
    cost_columns,
    difference_columns,
    difference_legend,
    over_tasks_columns,
)
from mtlbench.results.formatting import NONE, flags, interval, legend, marks, mean, metrics_of, short_names, troubles
from mtlbench.results.tuned import tuning_columns, tuning_legend, tuning_text
from mtlbench_reports.html.markup import Markup, el, escaped, join

Links = Mapping[str, str]
"""Row label to the link to its cells on the page."""


def grid(header: Iterable[Markup | None], rows: Iterable[Markup], *, name: str, sortable: bool = True) -> Markup:
    """A table that scrolls horizontally; ``sortable`` ones get buttons and a filter from the page's script."""
    table = el("table", el("thead", el("tr", header)), el("tbody", rows), class_="data" if sortable else "plain")
    return el("div", table, class_="wide", role="region", aria_label=name, tabindex="0")


def head(text: str, *, title: str | None = None, number: bool = True) -> Markup:
    """The header of a column."""
    return el("th", text, scope="col", title=title, class_="number" if number else None)


def task_heads(table: Table) -> list[Markup]:
    """Headers of the columns of tasks, with their metrics."""
    names = zip(short_names(table.tasks), table.tasks, map(partial(metrics_of, table), table.tasks), strict=True)
    return [head(name, title=f"{task}: {metrics}" if metrics else task) for name, task, metrics in names]


def number(text: str | Markup, value: float | None, *, title: str | None = None, class_: str = "") -> Markup:
    """A cell that sorts by ``value``; a missing or undefined one sorts last."""
    sort_key = f' data-value="{value}"' if value is not None and math.isfinite(value) else ""
    tooltip = f' title="{escaped(title)}"' if title is not None else ""
    inner = text if isinstance(text, Markup) else escaped(text)
    return Markup(f'<td class="{f"number {class_}".strip()}"{sort_key}{tooltip}>{inner}</td>')


def scores(table: Table, *, links: Links) -> Markup | None:
    """Rows by tasks, or nothing if no row has scores."""
    if not any(row.seeds for row in table.rows):
        return None
    tuning = [head("tuning", number=False)] if table.searches else []
    header = [head("method", number=False), *tuning, *task_heads(table), head("average"), head("seeds")]
    rows = [el("tr", _scores(row, table, link=links[row.label])) for row in table.rows]
    note = f"{legend(table)} A number links to its cells."
    return join(grid(header, rows, name="Scores"), el("p", note, class_="note"))


def _scores(row: Row, table: Table, *, link: str) -> Iterator[Markup]:
    yield el("th", el("a", row.label, href=link), scope="row")
    if table.searches:
        yield el("td", tuning_text(row, table))
    for entry in (*(row.entries.get(task) for task in table.tasks), row.average):
        yield _entry(entry, link) if entry else number(NONE, None)
    seeds = f"{len(row.seeds)} of {row.planned}"
    yield number(seeds, len(row.seeds), title=row.outcome, class_="" if len(row.seeds) == row.planned else "bad")


def _entry(entry: Entry, link: str) -> Markup:
    text = join(mean(entry.scores), marks(entry))
    title = "by seed: " + ", ".join(f"{value:.2f}" for value in entry.scores.values)
    if entry.interval:
        title += f"; 95 % interval {interval(entry.interval)}"
    linked = el("a", el("strong", text) if entry.best else text, href=link)
    kind = "best" if entry.best else "tied" if entry.tied else ""
    return number(linked, entry.scores.mean, title=title, class_=kind)


def tuning(table: Table, *, links: Links) -> Markup | None:
    """What tuning found and moved, or nothing if no row was tuned."""
    rows = [row for row in table.rows if row.tuned]
    section = _columns("Tuning", tuning_columns(table), rows, links, note=tuning_legend(table))
    return join(el("h3", "Tuning"), section) if section else None


def comparisons(table: Table, *, links: Links) -> Markup | None:
    """Differences to the reference and aggregates over tasks, or nothing if there is nothing to compare."""
    compared = [row for row in table.rows if row.comparison]
    ranked = [row for row in table.rows if row.rank is not None]
    title = f"Compared with {table.reference}" if table.reference else "Over all tasks"
    sections = [
        _columns("Differences", difference_columns(table), compared, links, note=difference_legend(table)),
        _columns("Over all tasks", over_tasks_columns(table), ranked, links, note=""),
    ]
    return join(el("h3", title), sections) if any(sections) else None


def probing(table: Table, *, links: Links) -> Markup | None:
    """Forgetting on probe tasks, or nothing if there are none."""
    note = forgetting_legend(table)
    section = _columns("Forgetting", forgetting_columns(table), probed(table), links, note=note)
    return join(el("h3", "Forgetting"), section) if section else None


def balancing(table: Table, *, links: Links) -> Markup | None:
    """Weights and interference of tasks in training, or nothing where no balancer was at work."""
    sections = []
    for label, balance in balances(table).items():
        header, lines = balance.cells()
        numbers = zip(lines, balance.cosines or [()] * len(lines), balance.weights, strict=True)
        rows = [
            el(
                "tr",
                el("th", line[0], scope="row"),
                [number(text, value) for text, value in zip(line[1:], [*cosines, weight], strict=True)],
            )
            for line, cosines, weight in numbers
        ]
        heads = [head(header[0], number=False), *map(head, header[1:])]
        name = f"Balance of {label}"
        sections.append(join(el("h4", el("a", label, href=links[label])), grid(heads, rows, name=name)))
    note = el("p", f"{BALANCE_LEGEND[0].upper()}{BALANCE_LEGEND[1:]}.", class_="note")
    return join(el("h3", "Balance of tasks"), sections, note) if sections else None


def calibration(table: Table, *, links: Links) -> Markup | None:
    """Calibration by task, collapsed, or nothing where no predictions give it."""
    section = _columns("Calibration", calibration_columns(table), calibrated_rows(table), links, note=LEGEND)
    return el("details", el("summary", "Calibration"), section) if section else None


def sweeps(study: Study) -> list[Markup | None]:
    """A section for each swept field; a row links to the first table that has it."""
    sections = []
    for sweep in sweeps_in(study.tables):
        where = {
            row.label: f"#table-{at}" for at, table in reversed([*enumerate(study.tables, 1)]) for row in table.rows
        }
        columns = _columns(sweep.title, sweep_columns(sweep), sweep.rows, where, note=sweep_legend(sweep))
        sections.append(el("section", el("h2", sweep.title), columns) if columns else None)
    return sections


def costs(table: Table, *, links: Links) -> Markup | None:
    """Costs of rows, or nothing if no row has costs."""
    note = "Means over seeds; peak memory: the highest."
    return _columns("Costs", cost_columns(table), [row for row in table.rows if row.costs], links, note=note)


def _columns(
    name: str, columns: Sequence[NumberColumn], rows: Sequence[Row], links: Links, *, note: str
) -> Markup | None:
    if not columns or not rows:
        return None
    header = [head("method", number=False), *(head(column.name, title=column.title or None) for column in columns)]
    lines = [
        el(
            "tr",
            el("th", el("a", row.label, href=links[row.label]), scope="row"),
            [number(column.text(row), column.value(row)) for column in columns],
        )
        for row in rows
    ]
    return join(grid(header, lines, name=name), el("p", note, class_="note") if note else None)


def degenerate(table: Table, *, links: Links) -> Markup | None:
    """Finished runs that say nothing about their method, or nothing."""
    lines = [
        el("li", el("a", row.label, href=links[row.label]), f": {line}.") for row in table.rows for line in flags(row)
    ]
    return join(el("h3", "Degenerate runs"), el("ul", lines, class_="bad")) if lines else None


def failures(table: Table, *, links: Links) -> Markup | None:
    """Failed, skipped and missing cells with their reasons, or nothing."""
    lines = [
        el("li", el("a", row.label, href=links[row.label]), f" {line}") for row in table.rows for line in troubles(row)
    ]
    return join(el("h3", "Failed, skipped and missing cells"), el("ul", lines, class_="bad")) if lines else None

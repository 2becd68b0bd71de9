"""The tables of rows: scores and costs. Every number links to the cells behind it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mtlbench.tables import AT_MAJORITY, Entry, Row, RowCosts, Table, sentences
from mtlbench_reports.html.markup import Markup, el, join
from mtlbench_reports.html.words import MARK, NONE, duration, mean, memory

Links = Mapping[str, str]
"""Row label to the address of its cells on the page."""


def grid(header: Iterable[Markup | None], rows: Iterable[Markup], *, name: str, sortable: bool = True) -> Markup:
    """A table that can be scrolled sideways; ``sortable`` ones get buttons and a filter from the page's script."""
    table = el("table", el("thead", el("tr", header)), el("tbody", rows), class_="data" if sortable else "plain")
    return el("div", table, class_="wide", role="region", aria_label=name, tabindex="0")


def head(text: str, *, title: str | None = None, number: bool = True) -> Markup:
    """The head of a column."""
    return el("th", text, scope="col", title=title, class_="number" if number else None)


def task_heads(tasks: Sequence[str]) -> list[Markup]:
    """Heads of the columns of tasks, without the suite where all are of one."""
    short = len(tasks) > 1 and len({task.partition("/")[0] for task in tasks}) == 1
    return [head(task.partition("/")[2] or task if short else task, title=task) for task in tasks]


def number(text: str | Markup, value: float | None, *, title: str | None = None, class_: str = "") -> Markup:
    """A cell that sorts by ``value``; a missing or undefined one sorts last."""
    known = value is not None and math.isfinite(value)
    return el("td", text, class_=f"number {class_}".strip(), data_value=value if known else None, title=title)


def scores(table: Table, *, links: Links) -> Markup | None:
    """Rows by tasks, or nothing where no row has scores; ``links`` says where the cells of a row are."""
    if not any(row.seeds for row in table.rows):
        return None
    header = [
        head("method", number=False),
        *task_heads(table.tasks),
        head("average"),
        head("seeds"),
    ]
    rows = [el("tr", _scores(row, table.tasks, link=links[row.label])) for row in table.rows]
    return join(grid(header, rows, name="Scores"), el("p", _legend(table), class_="note"))


def _scores(row: Row, tasks: Sequence[str], *, link: str) -> Iterator[Markup]:
    yield el("th", el("a", row.label, href=link), scope="row")
    for entry in (*(row.entries.get(task) for task in tasks), row.average):
        yield _entry(entry, link) if entry else number(NONE, None)
    seeds = f"{len(row.seeds)} of {row.planned}"
    yield number(seeds, len(row.seeds), title=row.outcome, class_="" if len(row.seeds) == row.planned else "bad")


def _entry(entry: Entry, link: str) -> Markup:
    text = join(mean(entry.scores), MARK if entry.at_majority else "")
    title = ", ".join(f"{value:.2f}" for value in entry.scores.values)
    linked = el("a", el("strong", text) if entry.best else text, href=link)
    return number(linked, entry.scores.mean, title=f"by seed: {title}", class_="best" if entry.best else "")


def _legend(table: Table) -> str:
    entries = [entry for row in table.rows for entry in (*row.entries.values(), row.average) if entry]
    words = ["Scores in percent"]
    if any(entry.scores.sd is not None for entry in entries):
        words.append("mean ± standard deviation over seeds")
    if any(entry.best for entry in entries):
        words.append("best mean in bold")
    if any(entry.at_majority for entry in entries):
        words.append(f"{MARK} {AT_MAJORITY}")
    return "; ".join(words) + ". A number leads to the cells behind it."


def costs(table: Table, *, links: Links) -> Markup | None:
    """What rows cost, or nothing where no row has costs."""
    if not any(row.costs for row in table.rows):
        return None
    kinds = sorted({row.costs.peak_memory_kind for row in table.rows if row.costs and row.costs.peak_memory_kind})
    names = (
        "trainable",
        "of backbone",
        "added at inference",
        f"peak memory ({' and '.join(kinds)})" if kinds else "peak memory",
        "tokens/s",
        "training",
        "total",
    )
    rows = [
        el("tr", el("th", el("a", row.label, href=links[row.label]), scope="row"), _costs(row.costs))
        for row in table.rows
        if row.costs
    ]
    note = el("p", "Means over seeds; peak memory: the highest.", class_="note")
    return join(grid([head("method", number=False), *map(head, names)], rows, name="Costs"), note)


def _costs(costs: RowCosts) -> Iterator[Markup]:
    trainable, inference = costs.trainable_parameters.mean, costs.inference_parameters.mean
    yield number(f"{trainable:,.0f}", trainable)
    yield number(f"{costs.trainable_percent:.2f}%", costs.trainable_percent)
    yield number(f"{inference:,.0f}", inference)
    peak = max(costs.peak_memory.values) if costs.peak_memory else None
    yield number(NONE if peak is None else memory(peak), peak)
    speed = costs.tokens_per_second.mean or None
    yield number(NONE if speed is None else f"{speed:,.0f}", speed)
    train = costs.train_seconds.mean or None
    yield number(NONE if train is None else duration(train), train)
    yield number(duration(costs.total_seconds.mean), costs.total_seconds.mean)


def troubles(table: Table, *, links: Links) -> Markup | None:
    """Failed, skipped and missing cells with their reasons, or nothing."""
    lines = [
        el(
            "li",
            el("a", row.label, href=links[row.label]),
            f" ({len(row.seeds)} of {row.planned} seeds): {sentences(str(problem), problem.next_step)}",
        )
        for row in table.rows
        for problem in row.problems
    ]
    return join(el("h3", "Failed, skipped and missing cells"), el("ul", lines, class_="bad")) if lines else None

"""The HTML page: one document with embedded style and script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from importlib import resources

from mtlbench.api.study import Study, Table
from mtlbench.results.formatting import FOREIGN, FOREIGN_HEADER, counts, foreign_cells, foreign_notes
from mtlbench_reports.charts.drawings import drawings
from mtlbench_reports.charts.style import drawing
from mtlbench_reports.html.cell_lines import lines, links
from mtlbench_reports.html.cells import cells
from mtlbench_reports.html.figures import figure, figures
from mtlbench_reports.html.markup import Markup, el, join
from mtlbench_reports.html.records import details
from mtlbench_reports.html.tables import (
    balancing,
    calibration,
    comparisons,
    costs,
    degenerate,
    failures,
    grid,
    head,
    number,
    probing,
    scores,
    sweeps,
    tuning,
)


def page(study: Study) -> str:
    """The study as a self-contained document; its content security policy allows only its own script."""
    style, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    with drawing(text="text"), drawings(study, figure) as drawn:
        texts = [_around_charts(study, table, number) for number, table in enumerate(study.tables, start=1)]
        sections = [
            el("section", before, figures(charts), after, id=f"table-{charts.number}")
            for (before, after), charts in zip(texts, drawn(), strict=True)
        ]
    sections += [_foreign(study)] if study.foreign else []
    page_head = join(
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        el("title", study.title),
        el("style", Markup(style)),
    )
    top = el("header", el("h1", study.title), el("p", counts(study.counts)), _bullets(study.notes), _contents(study))
    body = el("body", top, el("main", sweeps(study), sections), el("script", Markup(script)))
    whole = f"<!doctype html>\n{el('html', el('head', page_head), body, lang='en')}\n"
    return whole.encode(errors="replace").decode()  # lone surrogates in messages cannot be encoded


def _around_charts(study: Study, table: Table, number: int) -> tuple[Markup, Markup]:
    """The content before the charts of a table, and after them."""
    cell_lines = lines(table, anchor=f"row-{number}")
    row_links = links(cell_lines)
    alone = len(study.tables) == 1 and study.tables[0].title == study.title
    before = join(
        None if alone else el("h2", table.title),
        scores(table, links=row_links),
        tuning(table, links=row_links),
        comparisons(table, links=row_links),
        probing(table, links=row_links),
        balancing(table, links=row_links),
        calibration(table, links=row_links),
        costs(table, links=row_links),
        _bullets(table.notes),
        degenerate(table, links=row_links),
        failures(table, links=row_links),
        _protocol(table),
        el("h3", "Charts", id=f"charts-{number}"),
    )
    after = join(
        el("h3", "Cells", id=f"cells-{number}"),
        cells(table, cell_lines),
        el("h3", "Records", id=f"records-{number}"),
        map(details, cell_lines),
    )
    return before, after


def _foreign(study: Study) -> Markup:
    """Results of other programs, after all of ours."""
    header = [head(name, number=at > 3) for at, name in enumerate(FOREIGN_HEADER)]
    rows = [
        el(
            "tr",
            el("th", label, scope="row"),
            [el("td", text) for text in texts],
            number(score, float(score)),
            el("td", count),
        )
        for label, *texts, score, count in foreign_cells(study.foreign)
    ]
    table = grid(header, rows, name="Foreign rows")
    notes = _bullets(tuple(foreign_notes(study.foreign)))
    return el("section", el("h2", "Foreign rows"), el("p", FOREIGN), table, notes, id="foreign")


def _contents(study: Study) -> Markup:
    return el("nav", [el("p", _links(number, table)) for number, table in enumerate(study.tables, start=1)])


def _links(number: int, table: Table) -> Iterator[Markup]:
    yield el("a", table.title, href=f"#table-{number}")
    for section in ("charts", "cells", "records"):
        yield join(" · ", el("a", section, href=f"#{section}-{number}"))


def _protocol(table: Table) -> Markup:
    protocol = table.protocol
    lines = [
        el("tr", el("th", name, scope="row"), el("td", "none" if value is None else str(value)))
        for name, value in asdict(protocol).items()
        if name != "name"
    ]
    summary = el("summary", f"Equal for all rows: protocol {protocol.label}")
    return el("details", summary, el("table", el("tbody", lines), class_="pairs"))


def _bullets(lines: tuple[str, ...]) -> Markup | None:
    return el("ul", [el("li", line) for line in lines]) if lines else None


def _asset(name: str) -> str:
    return resources.files("mtlbench_reports.html").joinpath(name).read_text(encoding="utf-8")

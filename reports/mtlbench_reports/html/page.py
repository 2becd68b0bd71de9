"""The whole page: one document with its style and script inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from importlib import resources

from mtlbench.api.study import Study, Table
from mtlbench.results.formatting import counts
from mtlbench_reports.charts.drawings import drawings
from mtlbench_reports.charts.style import drawing
from mtlbench_reports.html.cells import cells
from mtlbench_reports.html.figures import figure, figures
from mtlbench_reports.html.lines import lines, links
from mtlbench_reports.html.markup import Markup, el, join
from mtlbench_reports.html.records import details
from mtlbench_reports.html.tables import beside, costs, degenerate, failures, scores


def page(study: Study) -> str:
    """The study as a document that fetches nothing: its policy allows its own script and no other."""
    style, script = _asset("page.css"), _asset("page.js")
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{known}'; base-uri 'none'"
    with drawing(text="text"), drawings(study, figure) as drawn:
        parts = [_parts(study, table, number) for number, table in enumerate(study.tables, start=1)]
        sections = [
            el("section", before, figures(charts), after, id=f"table-{charts.number}")
            for (before, after), charts in zip(parts, drawn(), strict=True)
        ]
    head = join(
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        el("title", study.title),
        el("style", Markup(style)),
    )
    top = el("header", el("h1", study.title), el("p", counts(study.counts)), _bullets(study.notes), _contents(study))
    body = el("body", top, el("main", sections), el("script", Markup(script)))
    whole = f"<!doctype html>\n{el('html', el('head', head), body, lang='en')}\n"
    return whole.encode(errors="replace").decode()  # half a surrogate pair in a message must not spoil the file


def _parts(study: Study, table: Table, number: int) -> tuple[Markup, Markup]:
    """What stands before the charts of a table, and after them."""
    told = lines(table, anchor=f"row-{number}")
    where = links(told)
    alone = len(study.tables) == 1 and study.tables[0].title == study.title
    before = join(
        None if alone else el("h2", table.title),
        scores(table, links=where),
        beside(table, links=where),
        costs(table, links=where),
        _bullets(table.notes),
        degenerate(table, links=where),
        failures(table, links=where),
        _protocol(table),
        el("h3", "Charts", id=f"charts-{number}"),
    )
    after = join(
        el("h3", "Cells", id=f"cells-{number}"),
        cells(table, told),
        el("h3", "Records", id=f"records-{number}"),
        map(details, told),
    )
    return before, after


def _contents(study: Study) -> Markup:
    return el("nav", [el("p", _links(number, table)) for number, table in enumerate(study.tables, start=1)])


def _links(number: int, table: Table) -> Iterator[Markup]:
    yield el("a", table.title, href=f"#table-{number}")
    for part in ("charts", "cells", "records"):
        yield join(" · ", el("a", part, href=f"#{part}-{number}"))


def _protocol(table: Table) -> Markup:
    protocol = table.protocol
    lines = [
        el("tr", el("th", name, scope="row"), el("td", "none" if value is None else str(value)))
        for name, value in asdict(protocol).items()
        if name != "name"
    ]
    words = el("summary", f"Equal for all rows: protocol {protocol.label}")
    return el("details", words, el("table", el("tbody", lines), class_="pairs"))


def _bullets(lines: tuple[str, ...]) -> Markup | None:
    return el("ul", [el("li", line) for line in lines]) if lines else None


def _asset(name: str) -> str:
    return resources.files("mtlbench_reports.html").joinpath(name).read_text(encoding="utf-8")

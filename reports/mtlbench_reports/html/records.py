"""The content of each record, collapsed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from mtlbench.api.record import Failure, Record
from mtlbench.results.formatting import NONE
from mtlbench.text import sentences
from mtlbench_reports.html.cell_lines import CellLine
from mtlbench_reports.html.markup import Markup, el, join
from mtlbench_reports.html.tables import grid, head, number


def details(line: CellLine) -> Markup:
    """All information about a cell."""
    record = line.record
    average = "" if record is None or record.average is None else f", average {record.average:.1f}"
    summary = f"{line.row.label}, seed {line.cell.seed}: {line.status}{average}"
    inner = el("div", _content(line), class_="held")
    return el("details", el("summary", summary), inner, id=line.details, class_=f"record {line.status}")


def _content(line: CellLine) -> Iterator[Markup | None]:
    record = line.record
    if record is None:
        yield el("p", "No record yet. Run the same command again: it runs only what is missing.", class_="bad")
        yield from _cell(line)
        return
    yield _failure(record.failure) if record.failure else None
    yield _scores(record)
    yield _pairs("Probe", dict(_probe(record)))
    yield _pairs("Costs", vars(record.costs)) if record.costs else None
    yield _pairs("Checks", {name: "passed" if passed else "failed" for name, passed in record.guards.items()})
    yield from _cell(line)
    yield _pairs("Provenance", record.provenance)
    yield _notes(record.notes)


def _scores(record: Record) -> Markup | None:
    if not record.scores:
        return None
    order = {task: at for at, task in enumerate(record.cell.tasks)}
    header = [head("task", number=False), head("score"), head("metrics", number=False), head("rows")]
    lines = [
        el(
            "tr",
            el("th", task, scope="row"),
            number(f"{score.score:.2f}", score.score),
            el("td", ", ".join(f"{name} {value:.4f}" for name, value in score.metrics.items())),
            number(f"{score.rows:,}", score.rows),
            number(NONE if score.majority is None else f"{score.majority:.1f}", score.majority),
        )
        for task, score in sorted(record.scores.items(), key=lambda item: order.get(item[0], len(order)))
    ]
    return grid([*header, head("majority")], lines, name="Scores of the cell", sortable=False)


def _probe(record: Record) -> Iterator[tuple[str, str]]:
    for task, score in record.probe.items():
        after = f"{score.after.score:.2f} after" if score.after else score.refusal
        yield task, f"{score.before.score:.2f} before training, {after}"


def _failure(failure: Failure) -> Markup:
    message = el("p", sentences(f"{failure.kind}: {failure.message}", failure.next_step), class_="bad")
    return join(message, el("pre", "\n".join(failure.frames)) if failure.frames else None)


def _cell(line: CellLine) -> Iterator[Markup | None]:
    cell = line.cell
    values = {field.name: getattr(cell, field.name) for field in fields(cell)}
    plain = {name: value for name, value in values.items() if isinstance(value, str | int)}
    yield _pairs("Cell", {"key": line.key, **plain, **cell.plugins})
    yield _pairs("Settings given", cell.settings)


def _pairs(title: str, pairs: Mapping[str, Any]) -> Markup | None:
    if not pairs:
        return None
    lines = [el("tr", el("th", name, scope="row"), el("td", _value(value))) for name, value in pairs.items()]
    return el("table", el("caption", title), el("tbody", lines), class_="pairs")


def _notes(notes: Mapping[str, Any]) -> Markup | None:
    lines = [f"{name}: {_value(value)}" for name, value in notes.items()]
    return el("div", el("h4", "Notes"), el("pre", "\n".join(lines))) if lines else None


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

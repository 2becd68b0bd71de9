"""Records to tables: computed once here, so that every report shows the same numbers, marks and warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtlbench.api.cell import Cell, Protocol, canonical
from mtlbench.api.record import Provenance, Record
from mtlbench.api.study import Flag, Predictions, Row, Steps, Study, Table, no_predictions, no_steps
from mtlbench.api.tuning import TunedMethod
from mtlbench.errors import RequestError, StoreError, did_you_mean
from mtlbench.results.circumstances import circumstances, row_check_notes
from mtlbench.results.degenerate import below_base, evidence_of
from mtlbench.results.multitask import REFERENCES, method_of, reference_row, with_ranks, with_reference
from mtlbench.results.rows import by_average, grouped, rows_of_variant, with_best, with_calibration
from mtlbench.results.shareable import shareable, shared_names
from mtlbench.results.tuned import (
    TunedCells,
    comparable,
    representative,
    searches_of,
    tuned_cells,
    tuning_notes,
    with_default_winners,
)
from mtlbench.text import one_line, seed_list, tasks_label, without_directories

if TYPE_CHECKING:
    from mtlbench.statistics.draws import AnswersOfRecords

__all__ = ["Study", "study_of"]


def study_of(
    records: Iterable[Record],
    *,
    expected: Sequence[Cell] = (),
    steps: Steps = no_steps,
    predictions: Predictions = no_predictions,
    reference: str | None = None,
    draws: int = 0,
    title: str = "",
    notes: Callable[[], Sequence[str]] = tuple,
    searches: Sequence[TunedMethod] = (),
) -> Study:
    """The tables of ``records``; cells of ``expected`` without a record are shown as missing.

    Args:
        steps: Reads step logs, for degenerate runs and for reports that draw them.
        predictions: Reads stored answers, for degenerate runs and for tests over examples.
        reference: Label of the row that others are compared with; by default ``lora_st``, ``lora`` or the first.
        draws: Resamples of the examples behind tests and intervals; 0 lets only the seeds vary.
        title: Replaces what the study is called; demo data and demo backbones are named all the same.
        notes: Gives those that come before the study's own; asked for when all else is read, which may find damage.
        searches: Those that tuned rows name. A tuned result without its search is left out, and a note says so.

    Raises:
        StoreError: two different records of one cell.
        RequestError: no table has the reference among its rows with scores.
    """
    by_key: dict[str, Record] = {}
    for record in records:
        if by_key.setdefault(record.key, record) != record:
            raise StoreError(
                f"Two different records claim cell {record.key} ({record.cell.variant}). Delete the wrong one."
            )
    named = shared_names([*expected, *(record.cell for record in by_key.values())])
    by_key = {key: shareable(record, named) for key, record in by_key.items()}
    missing = {cell.key: named(cell) for cell in expected if cell.key not in by_key}
    cells = [*(record.cell for record in by_key.values()), *missing.values()]
    tuned = tuned_cells(cells, searches)
    groups = comparable([cell for cell in cells if id(cell) not in tuned.refused], tuned)
    differing = _differing([representative(group, tuned).protocol for group in groups])
    by_cell = {id(record.cell): record for record in by_key.values()}
    tables = tuple(_table(group, records=by_cell, differing=differing, tuned=tuned) for group in groups)
    _check_reference(tables, reference)
    done = [record for record in by_key.values() if record.status == "ok"]
    evidence = dict(zip(map(id, done), evidence_of(done, predictions=predictions, steps=steps), strict=True))
    answers = {number: stored.answers for number, stored in evidence.items() if stored.answers is not None}
    flags = {number: stored.flags for number, stored in evidence.items()}
    tables = tuple(
        _tested(_flagged(table, flags=flags), reference=reference, answers=answers, draws=draws) for table in tables
    )
    tables = tuple(replace(t, rows=with_calibration(t.rows, answers, metrics=t.metrics)) for t in tables)
    warning = [f"The tables have different protocols ({', '.join(differing)}): compare rows inside a table only."]
    counts = {status: sum(r.status == status for r in by_key.values()) for status in ("ok", "failed", "skipped")}
    return Study(
        title=_study_title(tables, title=title),
        tables=tables,
        notes=(
            *(one_line(without_directories(note)) for note in notes()),
            *tuned.refused.values(),
            *(warning if differing else ()),
        ),
        counts={**counts, "missing": len(missing)},
        steps=steps,
    )


def _table(
    cells: Sequence[Cell], *, records: Mapping[int, Record], differing: Sequence[str], tuned: TunedCells
) -> Table:
    first = representative(cells, tuned)
    by_variant = grouped(cells, lambda cell: canonical([cell.method, dict(cell.settings), id(cell) in tuned.by_cell]))
    rows = [
        row
        for group in by_variant
        for row in rows_of_variant(group, tasks=first.scored, records=records, tuned=tuned.by_cell.get(id(group[0])))
    ]
    searches = searches_of(first, tuned)
    rows = with_default_winners(rows, searches)
    rows = sorted(with_best(rows, tasks=first.scored), key=by_average)
    differs = {name: getattr(first.protocol, name) for name in differing}
    return Table(
        title=_table_title(first, differs),
        protocol=first.protocol,
        model=first.model,
        tasks=first.scored,
        differs=differs,
        rows=tuple(rows),
        notes=(*table_notes(rows), *tuning_notes(searches)),
        metrics=_metrics(rows, first.scored),
        searches=searches,
    )


def _check_reference(tables: Sequence[Table], reference: str | None) -> None:
    rows = [row for table in tables for row in table.scored]
    if reference is not None and reference_row(rows, reference) is None:
        known = list(dict.fromkeys([*(row.label for row in rows), *map(method_of, rows)]))
        raise RequestError(
            f"No row with scores is called {reference!r}, and none is of a method of that name. "
            f"{did_you_mean(reference, known)}"
        )


def _flagged(table: Table, *, flags: Mapping[int, tuple[Flag, ...]]) -> Table:
    def flagged(row: Row) -> Row:
        return replace(row, flags=tuple(flag for record in row.records for flag in flags.get(id(record), ())))

    return replace(table, rows=tuple(below_base([flagged(row) for row in table.rows])))


def _tested(table: Table, *, reference: str | None, answers: AnswersOfRecords, draws: int) -> Table:
    """The table with ranks, with comparisons to its reference and with its tests."""
    table = replace(table, rows=tuple(with_ranks(table.rows, tasks=table.tasks)))
    if not table.scored:
        return table
    against = reference_row(table.scored, reference)
    if against is None:
        notes = (*table.notes, f"No row {reference} with an average: there is nothing to compare with.")
        table = replace(table, notes=notes)
    elif len(table.scored) > 1 or reference is not None:
        rows = with_reference(table.rows, against, tasks=table.tasks)
        best = reference is None and method_of(against) not in REFERENCES
        table = replace(table, rows=tuple(rows), reference=against.label, reference_is_best=best)
    from mtlbench.statistics.tested import tested  # scipy: only where there are scores

    return tested(table, answers=answers, draws=draws)


def _table_title(cell: Cell, differs: Mapping[str, Any]) -> str:
    title = f"{tasks_label(cell.scored)} on {one_line(cell.model)}"
    if cell.protocol.sources:
        title += f", after training on {tasks_label(cell.protocol.source_tasks)}"
    admitted = ", ".join(caveats(cell.protocol, cell.model))
    fields = ", ".join(f"{name}={'none' if value in (None, '') else value}" for name, value in differs.items())
    return one_line(": ".join(filter(None, (title, admitted))) + (f" [{fields}]" if fields else ""))


def _metrics(rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    scores = [record.scores for row in rows for record in row.records]
    return {
        task: tuple(next(s[task].metrics for s in scores if task in s))
        for task in tasks
        if any(task in s for s in scores)
    }


def _study_title(tables: Sequence[Table], *, title: str) -> str:
    if not title and len(tables) == 1:
        return tables[0].title
    admitted = dict.fromkeys(caveat for table in tables for caveat in caveats(table.protocol, table.model))
    return one_line(": ".join(filter(None, (title or f"{len(tables)} tables", ", ".join(admitted)))))


def caveats(protocol: Protocol, model: str) -> list[str]:
    """What a title must admit: results on generated data or on a toy backbone say nothing about real ones, and
    results on training rows nothing about the evaluation split."""
    found = ["demo data"] if protocol.data.startswith("demo") else []
    name = model.rpartition("/")[2] if model.startswith("/") else model  # a bundle's copy keeps the name
    found += ["demo backbone"] if name == "demo" or name.startswith("demo-") else []
    held_out = protocol.eval_from_train or protocol.holdout
    return [*found, "scored on training rows kept from training"] if held_out else found


def _differing(protocols: Sequence[Protocol]) -> list[str]:
    values = [protocol.compared() for protocol in protocols]
    return [name for name in (values[0] if values else {}) if len({v[name] for v in values}) > 1]


_SAME: Mapping[str, Callable[[Provenance], object]] = {
    "The fingerprint of the backbone's weights": lambda provenance: provenance.get("backbone_fingerprint"),
    "The dtype of the computation": lambda provenance: provenance.get("dtype"),
    "The device behind times and memory": lambda provenance: provenance.get("device"),
    "The machine behind times and memory": lambda provenance: provenance.get("host"),
    "The number of threads behind times": lambda provenance: provenance.get("threads"),
}
"""Provenance that should not differ inside a table, by its name in a sentence."""


def table_notes(rows: Sequence[Row]) -> Iterable[str]:
    scored = [row for row in rows if row.seeds]
    if scored and all(len(row.seeds) == 1 for row in scored):
        yield "One seed: no spread."
    if len({row.seeds for row in scored}) > 1:
        seeds = "; ".join(f"{row.label} {seed_list(row.seeds)}" for row in scored)
        yield f"The rows have different seeds: {seeds}."
    for name in sorted({name for row in rows for name in row.plugins}):
        versions = {row.label: row.plugins[name] for row in rows if name in row.plugins}
        if len(set(versions.values())) > 1:
            yield f"The rows used different versions of {name}: {'; '.join(f'{k} {v}' for k, v in versions.items())}."
    yield from _sources(rows)
    records = [record for row in scored for record in row.records if record.status == "ok"]
    for what, of in _SAME.items():
        seen = sorted({one_line(str(value)) for r in records if (value := of(r.provenance)) is not None})
        if len(seen) > 1:
            yield f"{what} differs between cells: {', '.join(seen)}."
    yield from circumstances(scored)
    yield from row_check_notes(records)
    for row in scored:
        yield from _row_notes(row)


def _sources(rows: Sequence[Row]) -> Iterable[str]:
    """Rows of one variant and version that differ in the source of their plugins, and rows of several versions."""
    of: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        of.setdefault((row.variant, row.tuned is not None), []).append(row)
    for (variant, _), same in of.items():
        if len({canonical(dict(row.plugins)) for row in same}) < len(same):
            newest = max(
                same, key=lambda row: max((r.provenance.get("finished", 0.0) for r in row.records), default=0.0)
            )
            rows_of = "; ".join(row.label for row in same)
            yield (
                f"The code of {variant} changed between these rows, its version did not: {rows_of}. The last one run "
                f"is {newest.label}."
            )
    for row in rows:
        versions = {canonical(dict(record.cell.plugins)): record.cell.plugins for record in row.records}
        if len(versions) > 1:
            said = "; ".join(" ".join(f"{k} {v}" for k, v in sorted(one.items())) for one in versions.values())
            yield f"The seeds of {row.label} have one source in several versions: {one_line(said)}."


def _row_notes(row: Row) -> Iterable[str]:
    for record in row.records:
        if record.status != "ok":
            continue
        broken = [one_line(name) for name, held in record.guards.items() if not held]
        if broken:
            yield f"{row.label}, seed {record.cell.seed}: a check did not hold: {', '.join(broken)}."
        untrained = _untrained(record)
        if untrained:
            yield (
                f"{row.label}, seed {record.cell.seed}: no row of {', '.join(untrained)} was trained on: its score "
                "rests on the training of other tasks."
            )
        without = [one_line(task) for task in record.cell.scored if task not in record.scores]
        if without:
            yield f"{row.label}, seed {record.cell.seed}: no score for {', '.join(without)}, so it is in no average."


def _untrained(record: Record) -> list[str]:
    """Scored tasks that a trained cell drew no row of."""
    drawn = record.notes.get("rows_per_task")
    if not isinstance(drawn, Mapping) or record.costs is None or not record.costs.steps:
        return []
    return [one_line(task) for task in record.cell.scored if not drawn.get(task)]

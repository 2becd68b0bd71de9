"""Records to tables: computed once here, so that every report shows the same numbers, marks and warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mtlbench.api.cell import Cell, Protocol, canonical
from mtlbench.api.record import Costs, Record, TaskScore
from mtlbench.errors import StoreError
from mtlbench.tables import (
    AT_MAJORITY,
    Entry,
    Problem,
    Row,
    RowCosts,
    Spread,
    Steps,
    Study,
    Table,
    no_steps,
    one_line,
    spread,
    tasks_words,
)

__all__ = [
    "AT_MAJORITY",
    "Entry",
    "Problem",
    "Row",
    "RowCosts",
    "Spread",
    "Study",
    "Table",
    "study_of",
]

_SAME = {
    "backbone_fingerprint": "The fingerprint of the backbone's weights",
    "dtype": "The dtype of the computation",
    "device": "The device behind times and memory",
    "host": "The machine behind times and memory",
    "threads": "The number of threads behind times",
}
"""Provenance that should not differ inside a table, in words."""


def study_of(
    records: Iterable[Record],
    *,
    expected: Sequence[Cell] = (),
    steps: Steps = no_steps,
    title: str = "",
    notes: Sequence[str] = (),
) -> Study:
    """The tables of ``records``; cells of ``expected`` without a record are shown as missing.

    ``title`` replaces what the study is called (demo data and demo backbones are named all the same), ``notes`` come
    before the study's own, ``steps`` reads step logs for reports that draw them.

    Raises:
        StoreError: two different records of one cell.
    """
    found: dict[str, Record] = {}
    for record in records:
        if found.setdefault(record.key, record) != record:
            raise StoreError(
                f"Two different records claim cell {record.key} ({record.cell.variant}). Delete the wrong one."
            )
    missing = {cell.key: cell for cell in expected if cell.key not in found}
    cells = [*(record.cell for record in found.values()), *missing.values()]
    groups = _grouped(cells, lambda cell: canonical([cell.model, list(cell.tasks), cell.protocol.hash()]))
    differing = _differing([group[0].protocol for group in groups])
    tables = tuple(_table(group, found=found, differing=differing) for group in groups)
    own = [f"The tables have different protocols ({', '.join(differing)}): compare rows inside a table only."]
    counts = {status: sum(r.status == status for r in found.values()) for status in ("ok", "failed", "skipped")}
    return Study(
        title=_study_title(tables, title=title),
        tables=tables,
        notes=(*map(one_line, notes), *(own if differing else ())),
        counts={**counts, "missing": len(missing)},
        steps=steps,
    )


def _table(cells: Sequence[Cell], *, found: Mapping[str, Record], differing: Sequence[str]) -> Table:
    first = cells[0]
    by_variant = _grouped(cells, lambda cell: canonical([cell.method, dict(cell.settings)]))
    rows = [row for group in by_variant for row in _rows_of_variant(group, tasks=first.tasks, found=found)]
    rows = sorted(_with_best(rows, tasks=first.tasks), key=_rank)
    differs = {name: getattr(first.protocol, name) for name in differing}
    return Table(
        title=_table_title(first, differs),
        protocol=first.protocol,
        model=first.model,
        tasks=first.tasks,
        differs=differs,
        rows=tuple(rows),
        notes=tuple(_table_notes(rows)),
    )


def _rows_of_variant(cells: Sequence[Cell], *, tasks: tuple[str, ...], found: Mapping[str, Record]) -> list[Row]:
    by_version = _grouped(cells, lambda cell: canonical(dict(cell.plugins)))
    versions = [group[0].plugins for group in by_version]
    told = [name for name in sorted({n for v in versions for n in v}) if len({v.get(name) for v in versions}) > 1]
    return [_row(group, told=told, tasks=tasks, found=found) for group in by_version]


def _row(cells: Sequence[Cell], *, told: Sequence[str], tasks: tuple[str, ...], found: Mapping[str, Record]) -> Row:
    cells = sorted(cells, key=lambda cell: cell.seed)
    first = cells[0]
    records = tuple(found[cell.key] for cell in cells if cell.key in found)
    done = [record for record in records if record.status == "ok"]
    missing = tuple(cell for cell in cells if cell.key not in found)
    versions = ", ".join(f"{name} {first.plugins.get(name, 'not used')}" for name in told)
    variant = one_line(first.variant)
    averages = [sum(r.scores[t].score for t in tasks) / len(tasks) for r in done if set(tasks) <= set(r.scores)]
    return Row(
        label=f"{variant} ({versions})" if versions else variant,
        variant=variant,
        plugins=first.plugins,
        records=records,
        missing=missing,
        seeds=tuple(record.cell.seed for record in done),
        entries={
            t: _entry([r.scores[t] for r in done if t in r.scores]) for t in tasks if any(t in r.scores for r in done)
        },
        average=Entry(scores=spread(averages), best=False, at_majority=False) if averages else None,
        costs=_costs([record.costs for record in done if record.costs]),
        problems=_problems(records, missing=missing),
    )


def _entry(scores: Sequence[TaskScore]) -> Entry:
    return Entry(scores=spread(s.score for s in scores), best=False, at_majority=_at_majority(scores))


def _at_majority(scores: Sequence[TaskScore]) -> bool:
    """Accuracy is compared with the majority's; a correlation with the 0 that one constant answer gets."""
    for metric in scores[0].metrics:
        name, majority = metric.partition(",")[0], scores[0].majority
        if majority is None or name not in ("acc", "mcc"):
            continue
        floor = majority / 100 if name == "acc" else 0.0
        return spread(s.metrics[metric] for s in scores if metric in s.metrics).mean <= floor + 1e-9
    return False


def _costs(costs: Sequence[Costs]) -> RowCosts | None:
    if not costs:
        return None
    peaks = [c.peak_memory for c in costs if c.peak_memory is not None]
    trainable = spread(c.trainable_parameters for c in costs)
    backbone = max(c.backbone_parameters for c in costs)
    return RowCosts(
        trainable_parameters=trainable,
        trainable_percent=100 * trainable.mean / backbone if backbone else 0.0,
        inference_parameters=spread(c.inference_parameters for c in costs),
        peak_memory=spread(peaks) if peaks else None,
        peak_memory_kind=" and ".join(sorted({c.peak_memory_kind for c in costs if c.peak_memory_kind})),
        tokens_per_second=spread(c.tokens_per_second for c in costs),
        train_seconds=spread(c.train_seconds for c in costs),
        total_seconds=spread(c.total_seconds for c in costs),
    )


def _problems(records: Sequence[Record], *, missing: Sequence[Cell]) -> tuple[Problem, ...]:
    reasons: dict[tuple[Any, str, str, str], list[int]] = {}
    for record in records:
        if record.status == "ok":
            continue
        why = record.failure
        words = (
            (why.kind, one_line(why.message), one_line(why.next_step)) if why else ("", "no reason was recorded", "")
        )
        reasons.setdefault((record.status, *words), []).append(record.cell.seed)
    if missing:
        again = "Run the same command again: it does only what is missing."
        reasons[("missing", "", "no record yet", again)] = [cell.seed for cell in missing]
    return tuple(
        Problem(status=status, seeds=tuple(seeds), kind=kind, message=message, next_step=next_step)
        for (status, kind, message, next_step), seeds in reasons.items()
    )


def _with_best(rows: Sequence[Row], *, tasks: Sequence[str]) -> list[Row]:
    tops = {task: _top(row.entries.get(task) for row in rows) for task in tasks}
    top = _top(row.average for row in rows)
    return [
        replace(
            row,
            entries={t: replace(e, best=e.scores.mean == tops[t]) for t, e in row.entries.items()},
            average=row.average and replace(row.average, best=row.average.scores.mean == top),
        )
        for row in rows
    ]


def _top(entries: Iterable[Entry | None]) -> float | None:
    means = [entry.scores.mean for entry in entries if entry]
    real = [mean for mean in means if not math.isnan(mean)]
    return max(real) if len(means) > 1 and real else None


def _rank(row: Row) -> tuple[bool, bool, float, str]:
    mean = row.average.scores.mean if row.average else 0.0
    return row.average is None, math.isnan(mean), 0.0 if math.isnan(mean) else -mean, row.label


def _table_notes(rows: Sequence[Row]) -> Iterable[str]:
    scored = [row for row in rows if row.seeds]
    if scored and all(len(row.seeds) == 1 for row in scored):
        yield "One seed: no spread."
    if len({row.seeds for row in scored}) > 1:
        told = "; ".join(f"{row.label} {', '.join(map(str, row.seeds))}" for row in scored)
        yield f"The rows have different seeds: {told}."
    for name in sorted({name for row in rows for name in row.plugins}):
        versions = {row.label: row.plugins[name] for row in rows if name in row.plugins}
        if len(set(versions.values())) > 1:
            yield f"The rows used different versions of {name}: {'; '.join(f'{k} {v}' for k, v in versions.items())}."
    records = [record for row in scored for record in row.records if record.status == "ok"]
    for name, what in _SAME.items():
        seen = sorted({one_line(str(r.provenance[name])) for r in records if r.provenance.get(name) is not None})
        if len(seen) > 1:
            yield f"{what} differs between cells: {', '.join(seen)}."
    for row in scored:
        yield from _row_notes(row)


def _row_notes(row: Row) -> Iterable[str]:
    for record in row.records:
        if record.status != "ok":
            continue
        broken = [one_line(name) for name, held in record.guards.items() if not held]
        if broken:
            yield f"{row.label}, seed {record.cell.seed}: a check did not hold: {', '.join(broken)}."
        without = [one_line(task) for task in record.cell.tasks if task not in record.scores]
        if without:
            yield f"{row.label}, seed {record.cell.seed}: no score for {', '.join(without)}, so it is in no average."


def _table_title(cell: Cell, differs: Mapping[str, Any]) -> str:
    title = f"{tasks_words(cell.tasks)} on {one_line(cell.model)}"
    demo = ", ".join(_owned_words(cell.protocol, cell.model))
    fields = ", ".join(f"{name}={'none' if value is None else value}" for name, value in differs.items())
    return one_line(": ".join(filter(None, (title, demo))) + (f" [{fields}]" if fields else ""))


def _study_title(tables: Sequence[Table], *, title: str) -> str:
    if not title and len(tables) == 1:
        return tables[0].title
    demo = dict.fromkeys(word for table in tables for word in _owned_words(table.protocol, table.model))
    return one_line(": ".join(filter(None, (title or f"{len(tables)} tables", ", ".join(demo)))))


def _owned_words(protocol: Protocol, model: str) -> list[str]:
    """What a title must own up to: results on generated data or on a toy backbone say nothing about real ones, and
    results on training rows nothing about the evaluation split."""
    words = ["demo data"] if protocol.data.startswith("demo") else []
    words += ["demo backbone"] if model == "demo" or model.startswith("demo-") else []
    return [*words, "scored on training rows kept from training"] if protocol.eval_from_train else words


def _differing(protocols: Sequence[Protocol]) -> list[str]:
    values = [asdict(protocol) for protocol in protocols]
    return [name for name in (values[0] if values else {}) if len({v[name] for v in values}) > 1]


def _grouped(cells: Iterable[Cell], by: Callable[[Cell], str]) -> list[list[Cell]]:
    """Cells in groups; groups in the order of their names, so that a study does not depend on the order of records."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(by(cell), []).append(cell)
    return [groups[name] for name in sorted(groups)]

"""What a table must admit about its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mtlbench.results.circumstances import circumstances
from mtlbench.results.tables import Row, one_line, seed_list

_SAME = {
    "backbone_fingerprint": "The fingerprint of the backbone's weights",
    "dtype": "The dtype of the computation",
    "device": "The device behind times and memory",
    "host": "The machine behind times and memory",
    "threads": "The number of threads behind times",
}
"""Provenance that should not differ inside a table, in words."""


def table_notes(rows: Sequence[Row]) -> Iterable[str]:
    scored = [row for row in rows if row.seeds]
    if scored and all(len(row.seeds) == 1 for row in scored):
        yield "One seed: no spread."
    if len({row.seeds for row in scored}) > 1:
        told = "; ".join(f"{row.label} {seed_list(row.seeds)}" for row in scored)
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
    yield from circumstances(scored)
    for row in scored:
        yield from _row_notes(row)


def _row_notes(row: Row) -> Iterable[str]:
    for record in row.records:
        if record.status != "ok":
            continue
        broken = [one_line(name) for name, held in record.guards.items() if not held]
        if broken:
            yield f"{row.label}, seed {record.cell.seed}: a check did not hold: {', '.join(broken)}."
        without = [one_line(task) for task in record.cell.scored if task not in record.scores]
        if without:
            yield f"{row.label}, seed {record.cell.seed}: no score for {', '.join(without)}, so it is in no average."

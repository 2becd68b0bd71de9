"""Inconsistencies in a paper: averages, values that are not k/n, tables that contradict each other, claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from mtlbench.published.between import few_above_all, identical, two_numbers
from mtlbench.published.claims import claim_findings
from mtlbench.published.paper import COUNTED, UNITS, AuditFinding, Paper, PublishedColumn, PublishedRow, PublishedTable
from mtlbench.published.possible import ShareFit, fit

HELD_OUT_SHARE = 0.1
"""Share of the training split tested as a possible evaluation split."""
BY_CHANCE = 0.01
"""A fit to another number of rows is reported if its probability by chance is at most this."""


def audit(paper: Paper) -> tuple[AuditFinding, ...]:
    """Every finding on a paper, check by check."""
    tables = paper.tables
    return (
        *(finding for table in tables for finding in _averages(table)),
        *(finding for table in tables for finding in _rows(table, paper.splits)),
        *identical(tables),
        *two_numbers(tables),
        *few_above_all(tables),
        *(finding for claim in paper.claims for finding in claim_findings(claim, tables)),
    )


def recomputed(row: PublishedRow) -> float | None:
    """The mean of a row's values, or ``None`` when one is missing."""
    values = [value for value in row.values if value is not None]
    return math.fsum(values) / len(values) if values and len(values) == len(row.values) else None


def _averages(table: PublishedTable) -> Iterator[AuditFinding]:
    """Averages that differ from the mean of the row by more than rounding or truncation can explain."""
    step = 10.0**-table.decimals
    for row in table.rows:
        mean = recomputed(row)
        if mean is None or row.average is None:
            continue
        difference = row.average - mean
        if abs(difference) <= step * (1 + 1e-9):
            continue
        copied = f" (row copied from {row.copied_from})" if row.copied_from else ""
        yield AuditFinding(
            check="average",
            tables=(table.name,),
            what=f"{row.name}: the average is printed as {row.average:.{table.decimals}f}, the mean of the row is "
            f"{mean:.{table.decimals + 1}f} ({difference:+.{table.decimals}f}){copied}.",
        )


def _rows(table: PublishedTable, splits: Mapping[str, Mapping[str, int]]) -> Iterator[AuditFinding]:
    """Columns whose values are not k/n of the public evaluation split, and what they fit instead."""
    for at, column in enumerate(table.columns):
        sizes = splits.get(column.task or "", {})
        values = [row.values[at] for row in table.rows]
        known = [value for value in values if value is not None]
        if column.metric not in COUNTED or not sizes or not known:
            continue
        official = [name for name in sizes if name != "train"]
        fits = {name: _fit(table, known, sizes[name]) for name in official}
        if any(share.holds for share in fits.values()):
            continue
        yield AuditFinding(
            check="rows",
            tables=(table.name,),
            what=_row_finding(table, column, known, fits, sizes.get("train")),
        )


def _row_finding(
    table: PublishedTable,
    column: PublishedColumn,
    values: Sequence[float],
    fits: Mapping[str, ShareFit],
    train: int | None,
) -> str:
    name, nearest = min(fits.items(), key=lambda item: len(item[1].impossible))
    wrong = ", ".join(table.printed(value) for value in nearest.impossible)
    of_values = f"{len(nearest.impossible)} of {len(set(values))} distinct values"
    text = f"{column.name}: {of_values} are not k/{nearest.rows} of the {name} split ({wrong})"
    if train is None:
        return f"{text}."
    held_out = _fit(table, values, math.ceil(HELD_OUT_SHARE * train))
    if not held_out.holds or held_out.chance > BY_CHANCE:
        return f"{text}."
    return (
        f"{text}; all fit k/{held_out.rows}, 10 % of the {train} training examples, {held_out.way} "
        f"(by chance once in {1 / held_out.chance:,.0f})."
    )


def _fit(table: PublishedTable, values: Sequence[float], rows: int) -> ShareFit:
    return fit(values, rows=rows, decimals=table.decimals, unit=100 / UNITS[table.unit])

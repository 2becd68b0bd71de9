"""Rows of a paper that contradict each other: identical cells, two numbers for one thing, few-shot above full data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from mtlbench.published.paper import AuditFinding, PublishedColumn, PublishedRow, PublishedTable


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two rows of one method."""

    one: PublishedTable
    row: PublishedRow
    other: PublishedTable
    twin: PublishedRow

    @property
    def tables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.one.name, self.other.name)))

    def shared(self) -> Iterator[tuple[PublishedColumn, float, float]]:
        """Columns of one task and metric, with both values in percent. A metric that is not stated may be any."""
        theirs = {_key(c): (c, v) for c, v in zip(self.other.columns, self.twin.values, strict=True) if v is not None}
        for column, value in zip(self.one.columns, self.row.values, strict=True):
            twin, twin_value = theirs.get(_key(column), (None, None))
            if value is None or twin is None or twin_value is None:
                continue
            if column.metric == twin.metric or "unknown" in (column.metric, twin.metric):
                yield column, self.one.percent(value), self.other.percent(twin_value)

    @property
    def step(self) -> float:
        """One unit of the last digit of the coarser table, in percent."""
        return max(table.percent(10.0**-table.decimals) for table in (self.one, self.other)) * (1 + 1e-9)


def identical(tables: Sequence[PublishedTable]) -> Iterator[AuditFinding]:
    """One method with the same number on one task under two backbones."""
    for pair in _pairs(tables):
        if pair.row.backbone == pair.twin.backbone or pair.one is pair.other:
            continue
        same = [(column, a) for column, a, b in pair.shared() if column.task and abs(a - b) < 1e-9]
        if same:
            cells = ", ".join(f"{column.name} ({_printed(pair.one, a)})" for column, a in same)
            yield AuditFinding(
                check="identical",
                tables=pair.tables,
                what=f"{pair.row.name} has the same {cells} on {pair.row.backbone} and on {pair.twin.backbone}.",
            )


def two_numbers(tables: Sequence[PublishedTable]) -> Iterator[AuditFinding]:
    """One method, task and backbone with two numbers, trained on as many examples."""
    for pair in _pairs(tables):
        if pair.row.backbone != pair.twin.backbone or pair.row.examples != pair.twin.examples:
            continue
        shared = list(pair.shared())
        differing = [(column, a, b) for column, a, b in shared if abs(a - b) > 1e-9]
        if any(abs(a - b) > pair.step / 2 for _, a, b in differing):
            cells = ", ".join(
                f"{column.name} {_printed(pair.one, a)} and {_printed(pair.other, b)}"
                + ("" if abs(a - b) > pair.step / 2 else " (the same when rounded)")
                for column, a, b in differing
            )
            yield AuditFinding(
                check="two",
                tables=pair.tables,
                what=f"{pair.row.name} on {pair.row.backbone} has two numbers on {len(differing)} of the {len(shared)} "
                f"tasks of both: {cells}.",
            )


def few_above_all(tables: Sequence[PublishedTable]) -> Iterator[AuditFinding]:
    """Averages with few training examples above those with all, over the same tasks."""
    for pair in _pairs(tables):
        if pair.row.backbone != pair.twin.backbone or (pair.row.examples == "all") == (pair.twin.examples == "all"):
            continue
        few = (
            pair if pair.row.examples != "all" else _Pair(one=pair.other, row=pair.twin, other=pair.one, twin=pair.row)
        )
        if set(map(_key, few.one.columns)) != set(map(_key, few.other.columns)):
            continue
        if few.row.average is None or few.twin.average is None:
            continue
        gain = few.one.percent(few.row.average) - few.other.percent(few.twin.average)
        if gain > few.step:
            yield AuditFinding(
                check="few-shot",
                tables=few.tables,
                what=f"{few.row.name} averages {few.one.printed(few.row.average)} with {few.row.examples} and "
                f"{few.other.printed(few.twin.average)} with all of them.",
            )


def _pairs(tables: Sequence[PublishedTable]) -> Iterator[_Pair]:
    rows = [(table, row) for table in tables for row in table.rows if row.method is not None]
    for (one, row), (other, twin) in combinations(rows, 2):
        if row.method == twin.method:
            yield _Pair(one=one, row=row, other=other, twin=twin)


def _key(column: PublishedColumn) -> str:
    return column.task or column.name


def _printed(table: PublishedTable, percent: float) -> str:
    return table.printed(round(percent / table.percent(1.0), 12))

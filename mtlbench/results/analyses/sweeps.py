"""Tables that differ in one field of the protocol, or in the backbone, and nothing else: a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from mtlbench.api.cell import canonical
from mtlbench.api.study import Entry, Row, Table
from mtlbench.planning.sweeps import SWEPT
from mtlbench.results.columns import NumberColumn
from mtlbench.results.formatting import NONE, mean
from mtlbench.results.study import caveats
from mtlbench.text import one_line, tasks_label


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One value of a sweep, with its table."""

    value: int | float | str
    position: float | None
    """On an axis: the value, or the number of the backbone's parameters; ``None`` where no record says it."""
    table: Table

    @property
    def label(self) -> str:
        """The value as text."""
        return f"{self.value:g}" if isinstance(self.value, float) else one_line(str(self.value))

    def entry(self, row: str) -> Entry | None:
        """The average of the row with this label."""
        return next((one.average for one in self.table.rows if one.label == row), None)


@dataclass(frozen=True, kw_only=True)
class SweptField:
    """Tables that are equal in all but one field."""

    field: str
    """A field of the protocol, or ``model``."""
    points: tuple[SweepPoint, ...]
    """At least two, by position."""
    fixed: str
    """What the tables share that others of the study do not, as text; may be empty."""

    @property
    def first(self) -> Table:
        """The first of its tables in the study."""
        return self.points[0].table

    @property
    def title(self) -> str:
        """``Sweep of train_rows: glue/rte, glue/sst2 on demo: demo data, demo backbone``."""
        on = f" on {one_line(self.first.model)}" if self.field != "model" else ""
        admitted = dict.fromkeys(c for point in self.points for c in caveats(point.table.protocol, point.table.model))
        title = f"Sweep of {self.field}: {tasks_label(self.first.tasks)}{on}"
        return ": ".join(filter(None, (title, ", ".join(admitted)))) + (f" [{self.fixed}]" if self.fixed else "")

    @property
    def rows(self) -> list[Row]:
        """One row for each label with an average anywhere, from the first table that has it, by label."""
        found: dict[str, Row] = {}
        for point in self.points:
            for row in point.table.rows:
                if row.average is not None:
                    found.setdefault(row.label, row)
        return [found[label] for label in sorted(found)]


def sweeps_in(tables: Sequence[Table]) -> list[SweptField]:
    """The sweeps among the tables of a study: fields of the protocol first, each by what its tables share."""
    fields = (*SWEPT[1:], SWEPT[0])
    return [sweep for field in fields for sweep in sorted(_of_field(field, tables), key=_shared)]


def _of_field(field: str, tables: Sequence[Table]) -> Iterator[SweptField]:
    groups: dict[str, list[SweepPoint]] = {}
    for table in tables:
        value = table.model if field == "model" else getattr(table.protocol, field)
        if value is not None:
            point = SweepPoint(value=value, position=_position(field, value, table), table=table)
            groups.setdefault(_rest(field, table), []).append(point)
    for points in groups.values():
        by_value = {point.value: point for point in reversed(points)}  # of two studies of one protocol, the first
        if len(by_value) > 1:
            ordered = sorted(by_value.values(), key=_order)
            yield SweptField(field=field, points=tuple(ordered), fixed=_fixed(field, ordered[0].table, tables))


def _shared(sweep: SweptField) -> tuple[str, str, list[float]]:
    """Sort key: tasks, backbone, and the other fields by their numbers."""
    table = sweep.first
    model = "" if sweep.field == "model" else table.model
    values = [getattr(table.protocol, name) for name in SWEPT[1:] if name != sweep.field]
    return ",".join(table.tasks), model, [float(value or 0) for value in values]


def _rest(field: str, table: Table) -> str:
    """Equal for tables that differ in nothing but the field. Steps make epochs meaningless."""
    protocol = {name: value for name, value in table.protocol.compared().items() if name != field}
    return canonical([list(table.tasks), protocol, None if field == "model" else table.model])


def _position(field: str, value: int | float | str, table: Table) -> float | None:
    if field != "model":
        return float(value)
    costs = [record.costs for row in table.rows for record in row.records if record.costs]
    return float(costs[0].backbone_parameters) if costs else None


def _order(point: SweepPoint) -> tuple[bool, float, str]:
    return point.position is None, point.position or 0.0, point.label


def _fixed(field: str, table: Table, tables: Sequence[Table]) -> str:
    """The values of other swept fields, where the study has several of them."""
    values = {name: getattr(table.protocol, name) for name in SWEPT[1:] if name != field}
    return ", ".join(
        f"{name}={'none' if value is None else f'{value:g}'}"
        for name, value in values.items()
        if len({getattr(other.protocol, name) for other in tables}) > 1
    )


def sweep_columns(sweep: SweptField) -> list[NumberColumn]:
    """The average of each row at each value."""
    return [
        NumberColumn(name=point.label, text=partial(_text, point), value=partial(_value, point))
        for point in sweep.points
    ]


def _text(point: SweepPoint, row: Row) -> str:
    entry = point.entry(row.label)
    if entry is None:
        return NONE
    within = entry.interval
    return mean(entry.scores) + (f" [{within.low:.1f}, {within.high:.1f}]" if within else "")


def _value(point: SweepPoint, row: Row) -> float | None:
    entry = point.entry(row.label)
    return entry.scores.mean if entry else None


def sweep_legend(sweep: SweptField) -> str:
    """What the columns of a sweep are."""
    return (
        f"{sweep.title}. Average score in percent at each value, everything else equal: mean ± standard deviation over "
        "seeds, with its 95 % interval where there is one. Compare rows inside a column; the table of each value has "
        "the tests."
    )

"""Which settings of a method its variants sweep: rows that differ in one setting and nothing else."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtlbench.api.cell import Cell, canonical
from mtlbench.api.method import Method, Value
from mtlbench.api.study import Row
from mtlbench.composition import Sum
from mtlbench.errors import MtlbenchError
from mtlbench.plugins import load_method, offer_of
from mtlbench.text import one_line

_log = logging.getLogger(__name__)
Settings = Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class SweepLine:
    """Rows of one method that differ in one setting only."""

    label: str
    """The method with the settings, as given, that all rows share."""
    points: tuple[tuple[Value, Row], ...]
    """At least two different values, in order."""

    @property
    def first(self) -> str:
        """The alphabetically first row label: its look is the line's."""
        return min(row.label for _, row in self.points)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One setting of one method and the lines along it."""

    method: str
    setting: str
    lines: tuple[SweepLine, ...]
    unknown: tuple[str, ...]
    """Rows of the method with a default value of the setting that is not known here."""

    @property
    def values(self) -> list[Value]:
        """All values, in order."""
        return sorted({value for line in self.lines for value, _ in line.points}, key=_order)

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)


def sweeps(rows: Iterable[Row], settings: Mapping[str, Settings]) -> list[Sweep]:
    """Every setting that at least two rows of a method with the same other settings give different values.

    Args:
        settings: Those of each row by its label, defaults included (see :func:`all_settings`).
    """
    methods: dict[str, list[tuple[Row, Settings]]] = {}
    for row in rows:
        methods.setdefault(cell_of(row).method, []).append((row, settings[row.label]))
    candidates = [
        _sweep(method, name, members)
        for method, members in sorted(methods.items())
        for name in sorted({name for row, _ in members for name in cell_of(row).settings})
    ]
    return [sweep for sweep in candidates if sweep.lines]


def defaults_of(member: str) -> tuple[str, str, Settings]:
    """The distribution of a method, its version, and the defaults of the method's fields.

    The method is not built: that may load the library behind it.

    Raises:
        MtlbenchError: it does not load.
    """
    offer = offer_of("methods", member)
    return offer.distribution, offer.version, _fields(load_method(member))


def all_settings(cell: Cell, *, defaults: Callable[[str], tuple[str, str, Settings]] = defaults_of) -> Settings:
    """The settings given, over the defaults of the method's fields where the version that ran is the one installed.

    ``defaults`` may remember what :func:`defaults_of` gave.
    """
    try:
        settings = {**_defaults(cell, defaults), **cell.settings}
    except MtlbenchError as error:  # a plugin that does not load must not break the other charts
        _log.debug("the defaults of %s are not known: %s", cell.method, error)
        return cell.settings
    if settings.get("learning_rate", 0) is None:
        settings["learning_rate"] = cell.protocol.learning_rate
    return settings


def _defaults(cell: Cell, defaults: Callable[[str], tuple[str, str, Settings]]) -> Settings:
    members = cell.method.split("+")
    of_members: dict[str, Value] = {}
    for member in members:
        distribution, version, fields = defaults(member)
        if cell.plugins.get(distribution) != version:
            return {}
        prefix = f"{member}." if len(members) > 1 else ""
        of_members |= {f"{prefix}{name}": value for name, value in fields.items()}
    return {**_fields(Sum), **of_members} if len(members) > 1 else of_members


def _fields(method: type[Method]) -> Settings:
    return {
        field.name: field.default
        for field in dataclasses.fields(method)
        if isinstance(field.default, bool | int | float | str | None)
    }


def cell_of(row: Row) -> Cell:
    """A cell of the row; all have the same method and settings."""
    return row.records[0].cell if row.records else row.missing[0]


def _sweep(method: str, setting: str, rows: Sequence[tuple[Row, Settings]]) -> Sweep:
    groups: dict[str, list[tuple[Value, Row]]] = {}
    for row, settings in rows:
        if setting in settings:
            rest = {key: value for key, value in settings.items() if key != setting}
            groups.setdefault(canonical([rest, dict(row.plugins)]), []).append((settings[setting], row))
    lines = [
        SweepLine(label=_shared(setting, points), points=tuple(sorted(points, key=lambda point: _order(point[0]))))
        for points in groups.values()
        if len({canonical(value) for value, _ in points}) > 1
    ]
    return Sweep(
        method=method,
        setting=setting,
        lines=tuple(sorted(lines, key=lambda line: line.label)),
        unknown=tuple(sorted(row.label for row, settings in rows if setting not in settings)),
    )


def _shared(setting: str, points: Sequence[tuple[Value, Row]]) -> str:
    """The variant without the setting, in its shortest form among the rows."""
    cells = [cell_of(row) for _, row in points]
    bare = [dataclasses.replace(c, settings={k: v for k, v in c.settings.items() if k != setting}) for c in cells]
    return one_line(min((cell.variant for cell in bare), key=lambda variant: (len(variant), variant)))


def _order(value: Value) -> tuple[int, float, str]:
    if isinstance(value, bool) or value is None:
        return 0, float(bool(value)), str(value)
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))

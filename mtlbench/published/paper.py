"""The values of a published paper: its tables as printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

METRICS: Mapping[str, str | None] = {
    "accuracy": "acc",
    "mcc": "mcc",
    "pearson": "pearson",
    "f1": "f1",
    "average": None,
    "unknown": None,
}
"""Metric of a column to the equivalent metric of our tasks; ``None`` where there is none."""
COUNTED = ("accuracy", "unknown")
"""Metrics whose values should be k/n of the scored examples; ``unknown`` is assumed to be an accuracy."""
UNITS: Mapping[str, float] = {"fraction": 100.0, "percent": 1.0}
"""Factor from a printed value to percent."""


@dataclass(frozen=True, kw_only=True)
class PublishedColumn:
    """One task of a table."""

    name: str
    """As printed."""
    metric: str
    """One of :data:`METRICS`."""
    task: str | None = None
    """Our full task name, such as ``glue/rte``."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row of a table, as printed."""

    name: str
    values: tuple[float | None, ...]
    """One per column; ``None`` where the paper prints nothing."""
    average: float | None = None
    method: str | None = None
    """Our method, with settings in brackets where the row fixes them: ``lora[rank=96]``."""
    backbone: str
    models: tuple[str, ...] = ()
    """Names under which that backbone can be loaded."""
    parameters: str = ""
    """Trained parameters as the paper states them."""
    k_shot: str = ""
    """Training examples of each task, in the format of a protocol's ``k_shot``; empty if the row is not few-shot."""
    train_rows: int | None = None
    """Training examples of each task, where the row was trained on so many instead of all."""
    copied_from: str = ""
    """Source that the paper copied the row from, if it did not measure it."""

    @property
    def examples(self) -> str:
        """The training examples in words: ``all``, ``500 examples of each task``."""
        if self.train_rows is not None:
            return f"{self.train_rows} examples of each task"
        return f"{self.k_shot} examples of each task" if self.k_shot else "all"


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """One table."""

    paper: str
    name: str
    caption: str
    unit: str
    """``fraction`` or ``percent``."""
    decimals: int
    """Digits printed after the point."""
    columns: tuple[PublishedColumn, ...]
    rows: tuple[PublishedRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """``peml/table-2``."""
        return f"{self.paper}/{self.name}"

    @property
    def backbones(self) -> tuple[str, ...]:
        """As the paper names them, each once."""
        return tuple(dict.fromkeys(row.backbone for row in self.rows))

    def percent(self, value: float) -> float:
        """A value of this table in percent."""
        return value * UNITS[self.unit]

    def printed(self, value: float | None) -> str:
        """A value with as many digits as the paper prints; ``-`` where it prints nothing."""
        if value is None:
            return "-"
        digits = len(repr(float(value)).partition(".")[2].rstrip("0"))
        return f"{value:.{max(self.decimals, digits)}f}"


@dataclass(frozen=True, kw_only=True)
class PublishedClaim:
    """A number that the paper states outside its tables."""

    what: str
    """What the number is, as a noun phrase."""
    where: str
    """Section or figure."""
    value: str
    """As printed: ``1,320``."""
    unit: str = ""
    follows: str = ""
    """How it follows from other numbers: one of :data:`mtlbench.published.claims.WAYS`; empty if it stands alone."""
    of: tuple[str, ...] = ()
    """Those numbers as printed, such as ``1.3M``; for a best gain our names of the methods that gain."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what} {self.value}{f' {self.unit}' if self.unit else ''}"


@dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """One inconsistency. It says nothing about the cause."""

    check: str
    """``average``, ``rows``, ``identical``, ``two``, ``few-shot`` or ``claim``."""
    tables: tuple[str, ...]
    """Names of the tables, such as ``table-4``, or where in the text a claim stands."""
    what: str
    """A sentence with the figures."""

    def __str__(self) -> str:
        return f"{self.check:<10}{' and '.join(self.tables)}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper of a ledger."""

    name: str
    title: str
    source: str
    tables: tuple[PublishedTable, ...]
    claims: tuple[PublishedClaim, ...] = ()
    notes: tuple[str, ...] = ()
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Full task name to number of examples in each split of the public release, for the audit."""

"""Input and result of drawing a chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from mtlbench.api.study import Row, Table
from mtlbench.results.analyses.sweeps import SweptField
from mtlbench_reports.charts.style import Look
from mtlbench_reports.charts.swept import Settings


@dataclass(frozen=True, kw_only=True)
class ChartInput:
    """The data of charts: a table, and the styles that all charts of a study share."""

    table: Table
    looks: Mapping[str, Look]
    """Row label to look."""
    settings: Mapping[str, Settings]
    """Row label to all settings, including defaults where they are known."""
    sweeps: Sequence[SweptField] = ()
    """The sweeps of the study whose first table this is."""
    steps: Callable[[str], Sequence[tuple[int, Mapping[str, float]]]]
    """Cell key to its step log: step, and full task name to mean loss over that step's rows, all tasks' under ""."""

    @property
    def scored(self) -> list[Row]:
        """Rows with an average that is finite."""
        return self.table.scored


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with its texts."""

    name: str
    """File name without ending, unique among the charts of a table."""
    title: str
    caption: str
    """Explanations for the reader; may be empty."""
    figure: Figure
    hover: Mapping[str, str] = field(default_factory=dict)
    """``gid`` of an element to its tooltip."""


@dataclass(frozen=True, kw_only=True)
class OmittedChart:
    """A chart that was not drawn, with the reason."""

    name: str
    title: str
    reason: str


def without_scores(rows: Sequence[Row]) -> str:
    """A sentence that names the rows without an average, or nothing."""
    names = [f"{row.label} ({_why(row)})" for row in rows if row.average is None]
    return f"Not shown, without an average: {', '.join(names)}." if names else ""


def _why(row: Row) -> str:
    problems = ", ".join(f"{len(problem.seeds)} {problem.status}" for problem in row.problems)
    return problems or "scores of some tasks only"

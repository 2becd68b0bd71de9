"""All charts of a study, table by table."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeVar

from mtlbench.api.study import Study, Table
from mtlbench.files.copies import in_copies
from mtlbench.results.analyses.sweeps import sweeps_in
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart
from mtlbench_reports.charts.critical import critical
from mtlbench_reports.charts.curves import curves
from mtlbench_reports.charts.differences import differences
from mtlbench_reports.charts.forgetting import forgetting
from mtlbench_reports.charts.losses import losses
from mtlbench_reports.charts.ranks import ranks
from mtlbench_reports.charts.rates import rates
from mtlbench_reports.charts.search import search
from mtlbench_reports.charts.sensitivity import sensitivity
from mtlbench_reports.charts.style import looks
from mtlbench_reports.charts.swept import all_settings, cell_of, defaults_of
from mtlbench_reports.charts.tradeoff import tradeoffs

T = TypeVar("T")
_log = logging.getLogger(__name__)
KINDS: tuple[Callable[[ChartInput], Iterator[Chart | OmittedChart]], ...] = (
    tradeoffs,
    ranks,
    curves,
    differences,
    forgetting,
    critical,
    losses,
    rates,
    sensitivity,
    search,
)


@dataclass(frozen=True, kw_only=True)
class TableCharts(Generic[T]):
    """The charts of one table, drawn or omitted."""

    number: int
    """Number of the table in the study, from 1."""
    table: Table
    charts: Sequence[T | OmittedChart]


@contextmanager
def drawings(
    study: Study, show: Callable[[int, Chart], T], *, copies: int | None = None
) -> Iterator[Callable[[], list[TableCharts[T]]]]:
    """Start drawing the charts of every table, inside ``style.drawing``; the yielded function waits for them.

    ``show`` converts a chart and the number of its table, for example to the bytes of a file. Figures take most of
    the time of a report, so they are drawn in ``copies`` forked processes (:func:`mtlbench.files.copies.in_copies`).
    """
    styles = looks(row.label for table in study.tables for row in table.rows)
    defaults = cache(defaults_of)  # reading the metadata of installed packages is slower than a chart
    swept = sweeps_in(study.tables)
    inputs = [
        ChartInput(
            table=table,
            looks=styles,
            settings={row.label: all_settings(cell_of(row), defaults=defaults) for row in table.rows},
            sweeps=[sweep for sweep in swept if sweep.first is table],
            steps=partial(_steps, study),
        )
        for table in study.tables
    ]
    jobs = [(at, kind) for at in range(len(inputs)) for kind in range(len(KINDS))]

    def charts(job: tuple[int, int]) -> list[T | OmittedChart]:
        at, kind = job
        made = KINDS[kind](inputs[at])
        return [chart if isinstance(chart, OmittedChart) else show(at + 1, chart) for chart in made]

    with in_copies(charts, jobs[::-1], copies=copies) as results:  # the last kinds have the largest charts
        yield lambda: list(_by_table(study, results()[::-1]))


def _by_table(study: Study, results: Sequence[Sequence[T | OmittedChart]]) -> Iterator[TableCharts[T]]:
    for at, table in enumerate(study.tables):
        charts = [chart for kind in results[at * len(KINDS) : (at + 1) * len(KINDS)] for chart in kind]
        for chart in charts:
            if isinstance(chart, OmittedChart):
                _log.info("no chart %r of %s: %s", chart.title, table.title, chart.reason)
        yield TableCharts(number=at + 1, table=table, charts=charts)


def _steps(study: Study, key: str) -> Sequence[tuple[int, Mapping[str, float]]]:
    return [line for entry in study.steps(key) if (line := _line(entry)) is not None]


def _line(entry: Mapping[str, Any]) -> tuple[int, Mapping[str, float]] | None:
    """Step and losses, with that of all tasks under the empty name; ``None`` for other lines of a log."""
    step, tasks = entry.get("step"), entry.get("tasks")
    if not isinstance(step, int):
        return None
    losses = {"": entry.get("loss"), **(tasks if isinstance(tasks, Mapping) else {})}
    return step, {name: float(v) for name, v in losses.items() if isinstance(v, int | float) and math.isfinite(v)}

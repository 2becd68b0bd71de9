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
from mtlbench_reports.charts.chart import Chart, LeftOut, Subject
from mtlbench_reports.charts.critical import critical
from mtlbench_reports.charts.differences import differences
from mtlbench_reports.charts.losses import losses
from mtlbench_reports.charts.ranks import ranks
from mtlbench_reports.charts.search import search
from mtlbench_reports.charts.sensitivity import sensitivity
from mtlbench_reports.charts.style import looks
from mtlbench_reports.charts.swept import all_settings, cell_of, defaults_of
from mtlbench_reports.charts.tradeoff import tradeoffs

T = TypeVar("T")
_log = logging.getLogger(__name__)
KINDS: tuple[Callable[[Subject], Iterator[Chart | LeftOut]], ...] = (
    tradeoffs,
    ranks,
    differences,
    critical,
    losses,
    sensitivity,
    search,
)


@dataclass(frozen=True, kw_only=True)
class Drawings(Generic[T]):
    """What became of the charts of one table."""

    number: int
    """Of the table in the study, from 1."""
    table: Table
    charts: Sequence[T | LeftOut]


@contextmanager
def drawings(
    study: Study, show: Callable[[int, Chart], T], *, copies: int | None = None
) -> Iterator[Callable[[], list[Drawings[T]]]]:
    """Begin to draw the charts of every table, inside ``style.drawing``; what it gives waits for them.

    ``show`` makes a value of a chart and of the number of its table, such as the bytes of a file. Figures take most of
    the time of a report, so they are drawn in ``copies`` of this process (:func:`mtlbench.files.copies.in_copies`).
    """
    styles = looks(row.label for table in study.tables for row in table.rows)
    defaults = cache(defaults_of)  # looking through the installed packages takes longer than a chart
    subjects = [
        Subject(
            table=table,
            looks=styles,
            settings={row.label: all_settings(cell_of(row), defaults=defaults) for row in table.rows},
            steps=partial(_steps, study),
        )
        for table in study.tables
    ]
    jobs = [(at, kind) for at in range(len(subjects)) for kind in range(len(KINDS))]

    def charts(job: tuple[int, int]) -> list[T | LeftOut]:
        at, kind = job
        made = KINDS[kind](subjects[at])
        return [chart if isinstance(chart, LeftOut) else show(at + 1, chart) for chart in made]

    with in_copies(charts, jobs[::-1], copies=copies) as results:  # the last kinds have the largest charts
        yield lambda: list(_by_table(study, results()[::-1]))


def _by_table(study: Study, found: Sequence[Sequence[T | LeftOut]]) -> Iterator[Drawings[T]]:
    for at, table in enumerate(study.tables):
        charts = [chart for part in found[at * len(KINDS) : (at + 1) * len(KINDS)] for chart in part]
        for chart in charts:
            if isinstance(chart, LeftOut):
                _log.info("no chart %r of %s: %s", chart.title, table.title, chart.reason)
        yield Drawings(number=at + 1, table=table, charts=charts)


def _steps(study: Study, key: str) -> Sequence[tuple[int, Mapping[str, float]]]:
    return [line for told in study.steps(key) if (line := _line(told)) is not None]


def _line(told: Mapping[str, Any]) -> tuple[int, Mapping[str, float]] | None:
    """Step and losses, that of all tasks under the empty name; ``None`` for other lines of a log."""
    step, tasks = told.get("step"), told.get("tasks")
    if not isinstance(step, int):
        return None
    losses = {"": told.get("loss"), **(tasks if isinstance(tasks, Mapping) else {})}
    return step, {name: float(v) for name, v in losses.items() if isinstance(v, int | float) and math.isfinite(v)}

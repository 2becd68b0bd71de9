"""All charts of a study, table by table."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mtlbench.results.tables import Study, Table
from mtlbench_reports.charts.chart import Chart, LeftOut, Subject
from mtlbench_reports.charts.critical import critical
from mtlbench_reports.charts.differences import differences
from mtlbench_reports.charts.losses import losses
from mtlbench_reports.charts.ranks import ranks
from mtlbench_reports.charts.search import search
from mtlbench_reports.charts.sensitivity import sensitivity
from mtlbench_reports.charts.style import looks
from mtlbench_reports.charts.swept import all_settings, cell_of
from mtlbench_reports.charts.tradeoff import tradeoffs

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
class Drawings:
    """The charts of one table; several figures are only in memory while they are asked for."""

    number: int
    """Of the table in the study, from 1."""
    table: Table
    charts: Iterator[Chart | LeftOut]


def drawings(study: Study) -> Iterator[Drawings]:
    """The charts of every table, each made when it is asked for, inside :func:`..style.drawing`."""
    styles = looks(row.label for table in study.tables for row in table.rows)
    for number, table in enumerate(study.tables, start=1):
        subject = Subject(
            table=table,
            looks=styles,
            settings={row.label: all_settings(cell_of(row)) for row in table.rows},
            steps=partial(_steps, study),
        )
        yield Drawings(number=number, table=table, charts=_charts(subject))


def _charts(subject: Subject) -> Iterator[Chart | LeftOut]:
    for kind in KINDS:
        for chart in kind(subject):
            if isinstance(chart, LeftOut):
                _log.info("no chart %r of %s: %s", chart.title, subject.table.title, chart.reason)
            yield chart


def _steps(study: Study, key: str) -> Sequence[tuple[int, Mapping[str, float]]]:
    return [line for told in study.steps(key) if (line := _line(told)) is not None]


def _line(told: Mapping[str, Any]) -> tuple[int, Mapping[str, float]] | None:
    """Step and losses, that of all tasks under the empty name; ``None`` for other lines of a log."""
    step, tasks = told.get("step"), told.get("tasks")
    if not isinstance(step, int):
        return None
    losses = {"": told.get("loss"), **(tasks if isinstance(tasks, Mapping) else {})}
    return step, {name: float(v) for name, v in losses.items() if isinstance(v, int | float) and math.isfinite(v)}

"""Mean ranks over tasks and groups of indistinguishable rows, drawn as a critical-difference diagram (Demsar 2006, JMLR
7). The groups come from a test over seeds, not from Nemenyi's over tasks: one training gives the scores of all tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mtlbench.api.study import Row
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart
from mtlbench_reports.charts.sheet import Sheet, short, text_width
from mtlbench_reports.charts.style import FAINT, INK, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mtlbench.statistics.over_tasks import Ranking

_NAME, _TITLE = "critical-difference", "Mean ranks over tasks"
_WIDE, _STEP = 4.2, 0.19
"""Inches of the axis, and between labels."""


def critical(data: ChartInput) -> Iterator[Chart | OmittedChart]:
    """One diagram of the rows with scores of every task."""
    rows = [row for row in data.table.rows if row.rank is not None]
    tasks = data.table.tasks
    if len(rows) < 3 or len(tasks) < 2:
        reason = f"it needs three rows with scores of all tasks, and two tasks; there are {len(rows)} and {len(tasks)}"
        yield OmittedChart(name=_NAME, title=_TITLE, reason=reason)
        return
    from mtlbench.statistics.over_tasks import ranking

    ranked = ranking(rows, tasks)
    if ranked is None:
        yield OmittedChart(name=_NAME, title=_TITLE, reason="the rows share no seed with scores of all tasks")
        return
    yield _chart(data, rows, ranked)


def _chart(data: ChartInput, rows: Sequence[Row], ranked: Ranking) -> Chart:
    order = sorted(range(len(rows)), key=lambda at: (ranked.ranks[rows[at].label], rows[at].label))
    half = math.ceil(len(order) / 2)
    labels = [short(row.label, width=2.6) for row in rows]
    side = max(map(text_width, labels)) + 0.45
    bars = _levels(ranked)
    top = 0.35
    first = top + 0.16 + 0.11 * (max(bars, default=-1) + 1)
    high = first + _STEP * half + 0.1
    sheet = Sheet(title=_TITLE, subtitle=data.table.title, width=2 * side + _WIDE, height=high)
    axes = sheet.axes(0, 0, 2 * side + _WIDE, high)
    axes.set(xlim=(0, 2 * side + _WIDE), ylim=(high, 0))
    axes.set_axis_off()
    last = len(rows)

    def x_of(rank: float) -> float:
        return side + (rank - 1) / (last - 1) * _WIDE

    _axis(axes, x_of, top=top, last=last)
    hover = {}
    for at, index in enumerate(order):
        left = at < half
        y = first + _STEP * (at if left else len(order) - 1 - at) + 0.05
        rank = ranked.ranks[rows[index].label]
        x = x_of(rank)
        edge = side - 0.3 if left else side + _WIDE + 0.3
        look = data.looks[rows[index].label]
        axes.plot([x, x, edge], [top, y, y], color=look.colour, linewidth=0.9, zorder=1)
        axes.plot(x, top, gid=f"rank-{at}", zorder=3, **look.points)
        text = edge + (-0.06 if left else 0.06)
        axes.text(text, y, labels[index], ha="right" if left else "left", va="center", size=SMALL)
        hover[f"rank-{at}"] = f"{rows[index].label}: mean rank {rank:.2f}"
    for level, clique in zip(bars, ranked.cliques, strict=True):
        ends = [x_of(ranked.ranks[label]) for label in (clique[0], clique[-1])]
        y = top + 0.12 + 0.11 * level
        axes.plot([ends[0] - 0.04, ends[1] + 0.04], [y, y], color=INK, linewidth=2.6, solid_capstyle="butt", zorder=2)
    caption = f"Rank 1 is best; ranks are means over {ranked.tasks} tasks and {_seeds(ranked.seeds)}. "
    caption += (
        "Thick lines join rows whose mean ranks are not significantly different at 5 %, tested over seeds and "
        "corrected for all pairs."
        if ranked.seeds > 1
        else "Nothing is tested with one seed: the tasks of one training are no independent observations."
    )
    left_out = [row.label for row in data.table.rows if row.rank is None]
    caption += f" Not shown, without scores of every task: {', '.join(left_out)}." if left_out else ""
    return Chart(name=_NAME, title=_TITLE, caption=caption, figure=sheet.figure, hover=hover)


def _axis(axes: Axes, x_of: Callable[[float], float], *, top: float, last: int) -> None:
    axes.plot([x_of(1), x_of(last)], [top, top], color=FAINT, linewidth=0.9, zorder=0)
    step = math.ceil(last / 12)
    for rank in range(1, last + 1, step):
        axes.plot([x_of(rank)] * 2, [top, top - 0.06], color=FAINT, linewidth=0.9)
        axes.text(x_of(rank), top - 0.1, str(rank), ha="center", va="bottom", size=SMALL, color=INK)


def _levels(ranked: Ranking) -> list[int]:
    """The line under the axis for each clique: the first on which it overlaps no other."""
    ends: list[float] = []
    levels = []
    for clique in ranked.cliques:
        start, stop = ranked.ranks[clique[0]], ranked.ranks[clique[-1]]
        level = next((at for at, end in enumerate(ends) if end < start - 0.05), len(ends))
        ends[level : level + 1] = [stop]
        levels.append(level)
    return levels


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"the {number} seeds that all have"

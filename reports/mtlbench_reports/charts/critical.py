"""Critical-difference diagram: mean ranks over tasks, and which rows they do not tell apart (Demsar 2006, JMLR 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mtlbench.api.study import Row
from mtlbench.results.formatting import probability
from mtlbench_reports.charts.chart import Chart, LeftOut, Subject
from mtlbench_reports.charts.sheet import Sheet, short, text_width
from mtlbench_reports.charts.style import FAINT, INK, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mtlbench.statistics.over_tasks import Ranking

_NAME, _TITLE = "critical-difference", "Mean ranks over tasks"
_WIDE, _STEP = 4.2, 0.19
"""Inches of the axis, and between labels."""


def critical(subject: Subject) -> Iterator[Chart | LeftOut]:
    """One diagram of the rows with scores of every task."""
    rows = [row for row in subject.table.rows if row.rank is not None]
    tasks = subject.table.tasks
    if len(rows) < 3 or len(tasks) < 2:
        reason = f"it takes three rows with scores of all tasks, and two tasks; there are {len(rows)} and {len(tasks)}"
        yield LeftOut(name=_NAME, title=_TITLE, reason=reason)
        return
    import numpy as np

    from mtlbench.statistics.over_tasks import ranking

    scores = np.array([[row.entries[task].scores.mean for task in tasks] for row in rows])
    yield _chart(subject, rows, ranking(scores))


def _chart(subject: Subject, rows: Sequence[Row], found: Ranking) -> Chart:
    order = sorted(range(len(rows)), key=lambda at: (found.ranks[at], rows[at].label))
    half = math.ceil(len(order) / 2)
    labels = [short(row.label, width=2.6) for row in rows]
    side = max(map(text_width, labels)) + 0.45
    bars = _levels(found)
    top = 0.75
    first = top + 0.16 + 0.11 * (max(bars, default=-1) + 1)
    high = first + _STEP * half + 0.1
    sheet = Sheet(title=_TITLE, subtitle=subject.table.title, width=2 * side + _WIDE, height=high)
    axes = sheet.axes(0, 0, 2 * side + _WIDE, high)
    axes.set(xlim=(0, 2 * side + _WIDE), ylim=(high, 0))
    axes.set_axis_off()
    last = len(rows)

    def place(rank: float) -> float:
        return side + (rank - 1) / (last - 1) * _WIDE

    _axis(axes, found, place, top=top, last=last)
    hover = {}
    for at, index in enumerate(order):
        left = at < half
        y = first + _STEP * (at if left else len(order) - 1 - at) + 0.05
        x, rank = place(found.ranks[index]), found.ranks[index]
        edge = side - 0.3 if left else side + _WIDE + 0.3
        look = subject.looks[rows[index].label]
        axes.plot([x, x, edge], [top, y, y], color=look.colour, linewidth=0.9, zorder=1)
        axes.plot(x, top, gid=f"rank-{at}", zorder=3, **look.points)
        text = edge + (-0.06 if left else 0.06)
        axes.text(text, y, labels[index], ha="right" if left else "left", va="center", size=SMALL)
        hover[f"rank-{at}"] = f"{rows[index].label}: mean rank {rank:.2f}"
    for level, clique in zip(bars, found.cliques, strict=True):
        ends = [place(found.ranks[at]) for at in (clique[0], clique[-1])]
        y = top + 0.12 + 0.11 * level
        axes.plot([ends[0] - 0.04, ends[1] + 0.04], [y, y], color=INK, linewidth=2.6, solid_capstyle="butt", zorder=2)
    caption = (
        "Rank 1 is best. Thick lines join rows that Nemenyi's test does not tell apart at 5 %: their mean ranks differ "
        f"by less than the critical difference of {found.critical:.2f}. Friedman's test over {found.tasks} tasks that "
        f"all rows are alike: p {_p(found.p)}."
    )
    left_out = [row.label for row in subject.table.rows if row.rank is None]
    caption += f" Not shown, without scores of every task: {', '.join(left_out)}." if left_out else ""
    return Chart(name=_NAME, title=_TITLE, caption=caption, figure=sheet.figure, hover=hover)


def _axis(axes: Axes, found: Ranking, place: Callable[[float], float], *, top: float, last: int) -> None:
    axes.plot([place(1), place(last)], [top, top], color=FAINT, linewidth=0.9, zorder=0)
    step = math.ceil(last / 12)
    for rank in range(1, last + 1, step):
        axes.plot([place(rank)] * 2, [top, top - 0.06], color=FAINT, linewidth=0.9)
        axes.text(place(rank), top - 0.1, str(rank), ha="center", va="bottom", size=SMALL, color=INK)
    reach = min(found.critical, last - 1)
    axes.plot([place(1), place(1 + reach)], [0.3, 0.3], color=INK, linewidth=1.2, marker="|", markersize=6)
    beyond = "" if found.critical <= last - 1 else ", more than all ranks"
    words = f"critical difference {found.critical:.2f}{beyond}"
    axes.text(place(1), 0.2, words, ha="left", va="bottom", size=SMALL, color=INK)


def _levels(found: Ranking) -> list[int]:
    """The line under the axis of each clique: the first on which no other one is in its way."""
    ends: list[float] = []
    levels = []
    for clique in found.cliques:
        start, stop = found.ranks[clique[0]], found.ranks[clique[-1]]
        level = next((at for at, end in enumerate(ends) if end < start - 0.05), len(ends))
        ends[level : level + 1] = [stop]
        levels.append(level)
    return levels


def _p(p: float) -> str:
    told = probability(p)
    return told if told.startswith("<") else f"= {told}"

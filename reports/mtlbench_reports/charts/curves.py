"""Average score along a swept field of the protocol or over backbones: sample efficiency and scaling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from matplotlib.transforms import offset_copy

from mtlbench.api.study import Entry
from mtlbench.results.analyses.sweeps import SweepPoint, SweptField
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart
from mtlbench_reports.charts.scales import brief, value_axis
from mtlbench_reports.charts.sheet import Sheet, legend_height, legend_width, short
from mtlbench_reports.charts.tradeoff import score_text

_WIDTH, _HEIGHT, _LEFT = 4.1, 3.0, 0.7
_APART = 4.0
"""Points between the bars of two lines, which would hide one another; more than five stand closer."""
_LABELS = {
    "train_rows": "training examples per task, at most",
    "steps": "optimizer steps",
    "epochs": "epochs over the training examples",
    "learning_rate": "peak learning rate of methods that set none",
    "model": "parameters of the backbone",
}
_Placed = tuple[float, SweepPoint, Entry]


def curves(data: ChartInput) -> Iterator[Chart | OmittedChart]:
    """A chart for each sweep whose first table this is; nothing where nothing is swept."""
    for sweep in data.sweeps:
        name, title = f"sweep-{sweep.field}", sweep.title
        lines = {row.label: placed for row in sweep.rows if len(placed := _placed(sweep, row.label)) > 1}
        if not lines:
            yield OmittedChart(name=name, title=title, reason="no row has an average at two values")
            continue
        yield _chart(name, sweep, lines, data)


def _placed(sweep: SweptField, row: str) -> list[_Placed]:
    """The points of a row that have a place on the axis and a finite average."""
    return [
        (point.position, point, entry)
        for point in sweep.points
        if point.position is not None and (entry := point.entry(row)) and math.isfinite(entry.scores.mean)
    ]


def _chart(name: str, sweep: SweptField, lines: dict[str, list[_Placed]], data: ChartInput) -> Chart:
    labels = list(lines)
    sheet = Sheet(
        title=f"Average score by {sweep.field}",
        subtitle=sweep.title,
        width=_LEFT + _WIDTH + 0.15 + legend_width(labels),
        height=max(_HEIGHT + 0.7, legend_height(labels)),
    )
    axes = sheet.axes(_LEFT, 0.1, _WIDTH, _HEIGHT)
    hover: dict[str, str] = {}
    handles: list[Artist] = []
    for at, (label, placed) in enumerate(lines.items()):
        look = data.looks[label]
        aside = _APART * (at - (len(lines) - 1) / 2) / max(1.0, (len(lines) - 1) / 4)
        place = offset_copy(axes.transData, fig=sheet.figure, x=aside, units="points")
        axes.plot([x for x, *_ in placed], [entry.scores.mean for *_, entry in placed], transform=place, **look.line)
        within = [(x, entry.interval) for x, _, entry in placed if entry.interval]
        ends = [x for x, _ in within], [one.low for _, one in within], [one.high for _, one in within]
        axes.vlines(*ends, colors=look.colour, linewidth=1.2, zorder=2, transform=place)
        for x, point, entry in placed:
            gid = f"curve-{len(hover)}"
            text = f"{label}, {sweep.field} {point.label}: {score_text(entry.scores)}"
            hover[gid] = f"{text}, 95 % interval {entry.interval}" if entry.interval else text
            axes.plot(x, entry.scores.mean, gid=gid, zorder=3, transform=place, **look.points)
        handles += axes.plot([], [], **look.both)
    _x_axis(axes, sweep)
    _y_axis(axes, [entry for placed in lines.values() for *_, entry in placed])
    axes.set(xlabel=_LABELS[sweep.field], ylabel="average score (%)")
    sheet.legend(handles, labels, left=_LEFT + _WIDTH + 0.15, top=0.1)
    return Chart(name=name, title=sweep.title, caption=_caption(sweep, lines), figure=sheet.figure, hover=hover)


def _x_axis(axes: Axes, sweep: SweptField) -> None:
    points = [point for point in sweep.points if point.position is not None]
    positions = [point.position for point in points if point.position is not None]
    value_axis(axes, positions)
    if axes.get_xscale() == "linear":
        room = 0.08 * (max(positions) - min(positions))
        axes.set_xlim(min(positions) - room, max(positions) + room)
    if sweep.field == "model":
        names = [f"{short(point.label, width=1.1)}\n{brief(point.position or 0)}" for point in points]
        axes.set_xticks(positions, names)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_label_coords(0.5, -(0.42 if sweep.field == "model" else 0.25) / _HEIGHT)


def _y_axis(axes: Axes, entries: Sequence[Entry]) -> None:
    """An interval over two seeds may be wider than all scores: means and spreads fill at least half the axis."""
    values = [entry.scores.mean + side * (entry.scores.sd or 0.0) for entry in entries for side in (-1, 1)]
    ends = [end for entry in entries if entry.interval for end in (entry.interval.low, entry.interval.high)]
    low, high = min(values), max(values)
    room = max(1.0, (high - low) / 2)
    axes.set_ylim(max(low - room, min([low, *ends])) - 0.5, min(high + room, max([high, *ends])) + 0.5)


def _caption(sweep: SweptField, lines: dict[str, list[_Placed]]) -> str:
    entries = [entry for placed in lines.values() for *_, entry in placed]
    text = f"Points: means over seeds; everything but {sweep.field} is equal. "
    if any(entry.interval for entry in entries):
        text += (
            "Bars: 95 % intervals of the mean over new seeds, and over new examples where predictions are stored, cut "
            "at the frame; they stand side by side to be seen. "
        )
    else:
        text += "No intervals: one seed. "
    rest = [row.label for row in sweep.rows if row.label not in lines]
    return (text + (f"Not shown, with fewer than two values: {', '.join(rest)}." if rest else "")).strip()

"""Average score along every setting that the variants of a method sweep (PEML paper, Figure 3)."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mtlbench.api.method import Value
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart
from mtlbench_reports.charts.scales import plain, value_axis
from mtlbench_reports.charts.sheet import Sheet, legend_height, short, text_width
from mtlbench_reports.charts.swept import Sweep, sweeps
from mtlbench_reports.charts.tradeoff import bars, score_text

_NAME, _TITLE = "sensitivity", "Average score along swept settings"
_WIDE, _HIGH, _COLUMNS = 2.6, 1.9, 3


def sensitivity(data: ChartInput) -> Iterator[Chart | OmittedChart]:
    """A panel for each method and setting, a line for each choice of the other settings."""
    swept = sweeps(data.scored, data.settings)
    if not swept:
        yield OmittedChart(name=_NAME, title=_TITLE, reason="no two scored rows of a method differ in one setting only")
        return
    columns = min(_COLUMNS, len(swept))
    step_x = _WIDE + 0.8
    rows = [swept[at : at + columns] for at in range(0, len(swept), columns)]
    below = [max(_below(sweep) for sweep in row) for row in rows]
    tops = [sum(0.3 + _HIGH + under for under in below[:at]) for at in range(len(rows))]
    height = sum(0.3 + _HIGH + under for under in below)
    sheet = Sheet(title=_TITLE, subtitle=data.table.title, width=max(4.8, 0.1 + columns * step_x), height=height)
    hover: dict[str, str] = {}
    for row, top in zip(rows, tops, strict=True):
        for at, sweep in enumerate(row):
            axes = sheet.axes(0.62 + at * step_x, top + 0.22, _WIDE, _HIGH)
            axes.set_title(short(f"{sweep.method}: {sweep.setting}", width=_WIDE, size=8.5), pad=4)
            if at == 0:
                axes.set_ylabel("average score (%)")
            hover |= _panel(axes, sweep, data, first=len(hover))
            if len(sweep.lines) > 1:
                _key(sheet, sweep, data, left=0.62 + at * step_x, top=top + 0.22 + _HIGH + _ticks(sweep))
    unknown = sorted({label for sweep in swept for label in sweep.unknown})
    caption = "Points: means over seeds, bars: standard deviation. All other settings of a line are equal."
    if unknown:
        caption += f" Not shown, because their value is a default that is not known here: {', '.join(unknown)}."
    yield Chart(name=_NAME, title=_TITLE, caption=caption, figure=sheet.figure, hover=hover)


def _panel(axes: Axes, sweep: Sweep, data: ChartInput, *, first: int) -> dict[str, str]:
    hover: dict[str, str] = {}
    positions = _positions(axes, sweep)
    for line in sweep.lines:
        look = data.looks[line.first]
        points = [(positions[str(value)], row.average.scores, row, value) for value, row in line.points if row.average]
        if sweep.numeric:
            axes.plot([x for x, *_ in points], [s.mean for _, s, *_ in points], **look.line)
        bars(axes, [(x, scores, look) for x, scores, _, _ in points])
        for x, scores, row, value in points:
            gid = f"sweep-{first + len(hover)}"
            hover[gid] = f"{row.label}: {sweep.setting} {setting_text(value)}, average {score_text(scores)}"
            axes.plot(x, scores.mean, gid=gid, zorder=3, **look.points)
    return hover


def _positions(axes: Axes, sweep: Sweep) -> dict[str, float]:
    """Position of each value on the x axis; values that are not numbers get separate positions."""
    if sweep.numeric:
        value_axis(axes, [float(value) for value in sweep.values if isinstance(value, int | float)])
        return {str(value): float(value) for value in sweep.values if isinstance(value, int | float)}
    names = [short(setting_text(value), width=1.3) for value in sweep.values]
    axes.set_xlim(-0.6, len(names) - 0.4)
    if _slanted(sweep):
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(names)), names)
    return {str(value): float(at) for at, value in enumerate(sweep.values)}


def setting_text(value: Value) -> str:
    """A setting's value as written in brackets."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return plain(value) if isinstance(value, int | float) else value


def _slanted(sweep: Sweep) -> bool:
    widest = max(text_width(short(setting_text(value), width=1.3)) for value in sweep.values)
    return not sweep.numeric and widest > _WIDE / len(sweep.values) - 0.1


def _ticks(sweep: Sweep) -> float:
    """Inches between the frame and the text under the tick labels."""
    if not _slanted(sweep):
        return 0.3
    return 0.2 + 0.6 * max(text_width(short(setting_text(value), width=1.3)) for value in sweep.values)


def _below(sweep: Sweep) -> float:
    return _ticks(sweep) + (legend_height([line.label for line in sweep.lines]) if len(sweep.lines) > 1 else 0) + 0.12


def _key(sheet: Sheet, sweep: Sweep, data: ChartInput, *, left: float, top: float) -> None:
    looks = [data.looks[line.first] for line in sweep.lines]
    handles = [Line2D([], [], **(look.both if sweep.numeric else look.points)) for look in looks]
    sheet.legend(handles, [line.label for line in sweep.lines], left=left, top=top)

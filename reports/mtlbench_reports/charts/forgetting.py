"""What training did to tasks that were never trained on, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from mtlbench.api.study import Row
from mtlbench.results.analyses.probing import NOTHING_TO_FORGET, Forgetting, probed, refusal, untrained_texts
from mtlbench.results.analyses.probing import forgetting as forgetting_of
from mtlbench.results.formatting import MAJORITY, points, short_names
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart
from mtlbench_reports.charts.scales import plain
from mtlbench_reports.charts.sheet import Sheet, short, text_width
from mtlbench_reports.charts.style import FAINT

_NAME, _TITLE = "forgetting", "Forgetting on tasks that were never trained on"
_WIDE, _LINE, _COLUMNS = 1.9, 0.26, 3


def forgetting(data: ChartInput) -> Iterator[Chart | OmittedChart]:
    """A panel for each probe task and one for their mean; nothing for a table without a probe."""
    tasks = data.table.protocol.probe_tasks
    rows = [row for row in probed(data.table) if forgetting_of(row, tasks)]
    if not tasks or not probed(data.table):
        return
    if not rows:
        yield OmittedChart(name=_NAME, title=_TITLE, reason="no row has scores of every probe task after training")
        return
    before = untrained_texts(data.table)
    panels: list[tuple[str, tuple[str, ...], str]] = [
        (name, (task,), text) for name, task, text in zip(short_names(tasks), tasks, before, strict=True)
    ]
    panels = [*panels, ("mean", tasks, "")] if len(tasks) > 1 else panels
    columns = min(_COLUMNS, len(panels))
    labels = [short(row.label, width=2.2) for row in rows]
    side, high = max(map(text_width, labels)) + 0.25, _LINE * len(rows) + 0.2
    step_x, step_y = _WIDE + 0.3, high + 0.75
    sheet = Sheet(
        title=_TITLE,
        subtitle=data.table.title,
        width=max(4.6, side + columns * step_x),
        height=step_y * math.ceil(len(panels) / columns),
    )
    hover: dict[str, str] = {}
    for at, (name, over, text) in enumerate(panels):
        line, column = divmod(at, columns)
        axes = sheet.axes(side + column * step_x, 0.25 + line * step_y, _WIDE, high)
        axes.set_title(f"{short(name, width=_WIDE - 0.5, size=8.5)}{f' ({text})' if text else ''}", pad=4)
        axes.set_yticks(range(len(rows)), labels if column == 0 else [""] * len(rows))
        axes.set(xlabel="points forgotten", ylim=(len(rows) - 0.4, -0.6))
        hover |= _panel(axes, [(row, forgetting_of(row, over)) for row in rows], data, name=name, first=len(hover))
    yield Chart(name=_NAME, title=_TITLE, caption=_caption(data, rows), figure=sheet.figure, hover=hover)


def _panel(
    axes: Axes, found: Sequence[tuple[Row, Forgetting | None]], data: ChartInput, *, name: str, first: int
) -> dict[str, str]:
    hover: dict[str, str] = {}
    axes.axvline(0.0, color=FAINT, linewidth=0.9, zorder=1)
    means = [one.points.mean for _, one in found if one]
    reach = max(2.0, *(abs(value) for one in (one for _, one in found if one) for value in one.points.values)) * 1.5
    for y, (row, one) in enumerate(found):
        if one is None or not math.isfinite(one.points.mean):
            continue
        look = data.looks[row.label]
        if one.interval:
            ends = max(-reach, one.interval.low), min(reach, one.interval.high)
            axes.hlines(y, *ends, colors=look.colour, linewidth=1.2, zorder=2)
        gid = f"forgetting-{first + len(hover)}"
        seeds = f"{len(one.seeds)} seed{'s' if len(one.seeds) > 1 else ''}"
        hover[gid] = (
            f"{row.label}, {name}: {points(one.points.mean, 2)} points, from {plain(round(one.before, 2))} to "
            f"{plain(round(one.after, 2))} ({seeds})"
        )
        axes.plot(one.points.mean, y, gid=gid, zorder=3, **look.points)
    axes.set_xlim(-reach * 1.05, reach * 1.05)
    return hover if means else {}


def _caption(data: ChartInput, shown: Sequence[Row]) -> str:
    text = (
        "Score of the untrained backbone (in brackets) minus score after training, means over seeds; right of the "
        "line, something was forgotten."
    )
    if any(MAJORITY in before for before in untrained_texts(data.table)):
        text += f" {NOTHING_TO_FORGET}."
    if any((one := forgetting_of(row, data.table.protocol.probe_tasks)) and one.interval for row in shown):
        text += " Bars: 95 % intervals over seeds, cut at the frame."
    rest = {row.label: refusal(row) for row in probed(data.table) if row not in shown}
    missing = [f"{label} ({reason})" if reason else label for label, reason in rest.items()]
    return text + (f" Not shown: {'; '.join(missing)}." if missing else "")

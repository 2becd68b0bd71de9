"""Peak memory and throughput against the total rank, for methods with a swept rank (PEML paper, Figure 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist

from mtlbench.api.study import Row, RowCosts
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart
from mtlbench_reports.charts.hardware import differing_hardware, memory_kind
from mtlbench_reports.charts.scales import plain, value_axis
from mtlbench_reports.charts.sheet import Sheet, legend_height, legend_width
from mtlbench_reports.charts.swept import Settings, SweepLine, cell_of, sweeps

_PER_MODULE = {"molora": "experts", "multilora": "modules"}
"""Methods whose ``rank`` is that of one of several modules, with the setting that counts them."""
_LEGEND = 7.65
_NAME, _TITLE = "rank-cost", "Peak memory and throughput against total rank"


@dataclass(frozen=True, kw_only=True)
class _Panel:
    label: str
    unit: str
    value: Callable[[RowCosts], float | None]


def ranks(data: ChartInput) -> Iterator[Chart | OmittedChart]:
    """One chart with a panel for memory and one for throughput."""
    swept = [sweep for sweep in sweeps(data.table.rows, data.settings) if _is_rank(sweep.setting)]
    lines = [line for sweep in swept for line in sweep.lines]
    curves = [(line, points) for line in lines if len(points := _points(line, data.settings)) > 1]
    if not curves:
        yield OmittedChart(name=_NAME, title=_TITLE, reason="no method has measured rows that differ only in rank")
        return
    rows = [row for _, points in curves for _, row in points]
    reason = differing_hardware(rows, memory=True)
    if reason:
        yield OmittedChart(name=_NAME, title=_TITLE, reason=reason)
        return
    yield _chart(data, curves, memory_kind(rows))


def _chart(data: ChartInput, curves: Sequence[tuple[SweepLine, list[tuple[float, Row]]]], kind: str) -> Chart:
    panels = (
        _Panel(
            label=f"peak memory of the {kind} (MiB)",
            unit="MiB",
            value=lambda costs: max(costs.peak_memory.values) / 2**20 if costs.peak_memory else None,
        ),
        _Panel(
            label="training throughput (real tokens/s)",
            unit="tokens/s",
            value=lambda costs: costs.tokens_per_second.mean or None,
        ),
    )
    labels = [line.label for line, _ in curves]
    sheet = Sheet(
        title=_TITLE,
        subtitle=data.table.title,
        width=_LEGEND + legend_width(labels),
        height=max(3.0, legend_height(labels)),
    )
    handles: list[Artist] = []
    hover: dict[str, str] = {}
    for at, panel in enumerate(panels):
        axes = sheet.axes(0.75 + at * 3.75, 0.05, 2.9, 2.5)
        axes.set_xlabel("total rank")
        axes.set_ylabel(panel.label)
        for number, (line, points) in enumerate(curves):
            drawn = [(x, y, row) for x, row in points if row.costs and (y := panel.value(row.costs)) is not None]
            look = data.looks[line.first]
            (handle,) = axes.plot([x for x, _, _ in drawn], [y for _, y, _ in drawn], **look.both)
            for x, y, row in drawn:
                gid = f"rank-{at}-{number}-{len(hover)}"
                axes.plot(x, y, gid=gid, zorder=3, **look.points)
                hover[gid] = f"{row.label}: total rank {plain(x)}, {plain(round(y, 1))} {panel.unit}"
            if at == 0:
                handles.append(handle)
        value_axis(axes, [x for _, points in curves for x, _ in points])
    sheet.legend(handles, labels, left=_LEGEND, top=0.05)
    caption = "Memory: highest over seeds. Throughput: mean over seeds."
    if any(cell_of(row).method in _PER_MODULE for _, points in curves for _, row in points):
        caption += " Total rank: the rank times the number of modules or experts."
    return Chart(name=_NAME, title=_TITLE, caption=caption, figure=sheet.figure, hover=hover)


def _points(line: SweepLine, settings: Mapping[str, Settings]) -> list[tuple[float, Row]]:
    measured = [(value, row) for value, row in line.points if row.costs]
    numbers = [(float(v) * _copies(row, settings), row) for v, row in measured if isinstance(v, int | float) and v > 0]
    return numbers if len({x for x, _ in numbers}) > 1 else []


def _copies(row: Row, settings: Mapping[str, Settings]) -> int:
    count = settings[row.label].get(_PER_MODULE.get(cell_of(row).method, ""), 1)
    return count if isinstance(count, int) else 1


def _is_rank(setting: str) -> bool:
    return setting.rpartition(".")[2] in ("rank", "r")

"""Average score against cost, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from mtlbench.api.study import Row, RowCosts, Spread
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart, without_scores
from mtlbench_reports.charts.hardware import differing_hardware, memory_kind
from mtlbench_reports.charts.scales import plain, spread_axis
from mtlbench_reports.charts.sheet import Sheet, legend_height, legend_width
from mtlbench_reports.charts.style import FAINT, Look

_WIDTH, _HEIGHT, _LEFT, _LEGEND = 4.1, 3.0, 0.7, 5.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A horizontal axis."""

    name: str
    title: str
    unit: str
    value: Callable[[RowCosts], float | None]
    measured: bool = True
    """Whether it depends on the hardware."""


COSTS = (
    Cost(
        name="trainable",
        title="trainable parameters",
        unit="trainable parameters",
        value=lambda costs: costs.trainable_parameters.mean,
        measured=False,
    ),
    Cost(
        name="memory",
        title="peak memory",
        unit="MiB",
        value=lambda costs: max(costs.peak_memory.values) / 2**20 if costs.peak_memory else None,
    ),
    Cost(name="time", title="training time", unit="s", value=lambda costs: costs.train_seconds.mean),
)


def tradeoffs(data: ChartInput) -> Iterator[Chart | OmittedChart]:
    """A chart for each of :data:`COSTS`."""
    return (_tradeoff(data, cost) for cost in COSTS)


def _tradeoff(data: ChartInput, cost: Cost) -> Chart | OmittedChart:
    name, title = f"score-{cost.name}", f"Average score against {cost.title}"
    measured = [(row, cost.value(row.costs)) for row in data.scored if row.costs]
    points = [(x, row.average.scores, row) for row, x in measured if x is not None and row.average]
    if not points:
        return OmittedChart(name=name, title=title, reason=f"no row has both an average and its {cost.title}")
    rows = [row for _, _, row in points]
    reason = differing_hardware(rows, memory=cost.name == "memory") if cost.measured else None
    if reason:
        return OmittedChart(name=name, title=title, reason=reason)
    front = pareto([(x, scores.mean) for x, scores, _ in points])
    labels = [*(["Pareto front"] if len(front) > 1 else []), *(row.label for row in rows)]
    high = max(_HEIGHT, legend_height(labels) - 0.35)
    sheet = Sheet(
        title=title,
        subtitle=data.table.title,
        width=_LEGEND + max(1.2, legend_width(labels)),
        height=high + 0.5,
    )
    axes = sheet.axes(_LEFT, 0.05, _WIDTH, high)
    axes.set_xlabel(_label(cost, rows))
    axes.set_ylabel("average score (%)")
    spread_axis(axes, (x for x, _, _ in points))
    handles: list[Artist] = _front(axes, front)
    hover = {}
    bars(axes, [(x, scores, data.looks[row.label]) for x, scores, row in points])
    for at, (x, scores, row) in enumerate(points):
        hover[f"point-{at}"] = f"{row.label}: average {score_text(scores)}, {plain(round(x, 2))} {cost.unit}"
        look = data.looks[row.label]
        handles += axes.plot(x, scores.mean, gid=f"point-{at}", zorder=3, **look.points)
    sheet.legend(handles, labels, left=_LEGEND, top=0.05)
    spread = "Bars: standard deviation over seeds. " if any(scores.sd is not None for _, scores, _ in points) else ""
    alone = next(row.label for x, y, row in points if (x, y.mean) == front[0])
    front_text = (
        "no other row has a higher average at no higher cost" if len(front) > 1 else f"{alone} alone, best and cheapest"
    )
    caption = f"{spread}Pareto front: {front_text}. {_without(data, rows)}"
    return Chart(name=name, title=title, caption=caption.strip(), figure=sheet.figure, hover=hover)


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, score) that no other dominates: cheaper first, each with a higher score than the last."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def score_text(scores: Spread) -> str:
    """``66.8 ± 3.2 (2 seeds)``."""
    seeds = f"({scores.n} seed{'s' if scores.n > 1 else ''})"
    return f"{scores.mean:.1f} {seeds}" if scores.sd is None else f"{scores.mean:.1f} ± {scores.sd:.1f} {seeds}"


def _front(axes: Axes, front: Sequence[tuple[float, float]]) -> list[Artist]:
    if len(front) < 2:
        return []
    xs, ys = zip(*front, strict=True)
    return list(axes.step(xs, ys, where="post", color=FAINT, linestyle=(0, (4, 2)), linewidth=1.0, zorder=1))


def bars(axes: Axes, points: Iterable[tuple[float, Spread, Look]]) -> None:
    """Standard deviations as vertical lines, all in one artist."""
    spreads = [(x, scores.mean, scores.sd, look.colour) for x, scores, look in points if scores.sd is not None]
    if spreads:
        xs, means, sds, colours = zip(*spreads, strict=True)
        lows, highs = ([mean + side * sd for mean, sd in zip(means, sds, strict=True)] for side in (-1, 1))
        axes.vlines(xs, lows, highs, colors=colours, linewidth=1.2, zorder=2)


def _label(cost: Cost, rows: Sequence[Row]) -> str:
    if cost.name == "memory":
        return f"peak memory of the {memory_kind(rows)} (MiB), highest over seeds"
    return f"{cost.title} ({cost.unit})" if cost.title != cost.unit else cost.title


def _without(data: ChartInput, shown: Sequence[Row]) -> str:
    labels = {row.label for row in shown}
    unmeasured = [row.label for row in data.scored if row.label not in labels]
    text = f"Not shown, without this cost: {', '.join(unmeasured)}. " if unmeasured else ""
    return text + without_scores(data.table.rows)

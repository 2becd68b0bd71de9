"""Training losses over steps, for all tasks together and for each one, and the validation loss for early stopping."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from matplotlib.artist import Artist

from mtlbench.api.study import Row
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart
from mtlbench_reports.charts.scales import differ_much, plain, spread_axis, step_axis
from mtlbench_reports.charts.sheet import Sheet, legend_height, legend_width, short
from mtlbench_reports.charts.style import SMALL

Curve = Sequence[tuple[float, float]]
_WINDOWS = 40
"""Maximum points of a curve; for a longer log, each point is the mean of a window."""
_ROWS, _SEEDS = 12, 3
"""Maximum rows, best averages first, and maximum seeds of each."""
_NAME, _TITLE = "losses", "Loss over training steps"
_ALL, _VALIDATION = "training, all tasks", "validation split, mean over tasks"
_WIDE, _HIGH, _COLUMNS, _LEFT, _TOP = 2.2, 1.4, 3, 0.65, 0.22


def losses(data: ChartInput) -> Iterator[Chart | OmittedChart]:
    """A panel for the training loss, for the early-stopping loss, and for each task; a line for each row."""
    panels: dict[str, dict[str, Curve]] = {}
    shown: list[str] = []
    for row in data.table.rows:
        curves = _curves(data, row) if len(shown) < _ROWS else {}
        shown += [row.label] if curves else []
        for name, curve in curves.items():
            panels.setdefault(name, {})[row.label] = curve
    order = [name for name in (_ALL, _VALIDATION, *data.table.tasks) if name in panels]
    if not order:
        yield OmittedChart(name=_NAME, title=_TITLE, reason="no row has a step log or an early-stopping loss")
        return
    if len(data.table.tasks) == 1 and _ALL in panels:
        order = [name for name in order if name not in data.table.tasks]
    yield _chart(data, {name: panels[name] for name in order}, shown)


def _chart(data: ChartInput, panels: Mapping[str, Mapping[str, Curve]], rows: Sequence[str]) -> Chart:
    columns = 2 if len(panels) == 4 else min(_COLUMNS, len(panels))
    step_x, step_y = _WIDE + 0.15, _HIGH + 0.3
    legend = _LEFT + columns * step_x + 0.1
    values = [y for curves in panels.values() for curve in curves.values() for _, y in curve]
    last = max(x for curves in panels.values() for curve in curves.values() for x, _ in curve)
    sheet = Sheet(
        title=_TITLE,
        subtitle=data.table.title,
        width=legend + legend_width(rows),
        height=_TOP + max(math.ceil(len(panels) / columns) * step_y + 0.2, legend_height(rows)),
    )
    hover: dict[str, str] = {}
    handles: dict[str, Artist] = {}
    for at, (name, curves) in enumerate(panels.items()):
        axes = sheet.axes(_LEFT + at % columns * step_x, _TOP + at // columns * step_y, _WIDE, _HIGH)
        axes.set_title(short(name, width=_WIDE), size=SMALL, pad=3)
        axes.set_xlim(0, 1.03 * max(last, 1))
        spread_axis(axes, values, along="y", log=differ_much(values))
        if axes.get_yscale() == "linear":
            axes.set_ylim(min(0.0, *values), max(values) * 1.05)
        step_axis(axes)
        below, leftmost = at + columns >= len(panels), at % columns == 0
        axes.set(xlabel="step" if below else "", ylabel="loss (nats a token)" if leftmost else "")
        axes.tick_params(labelbottom=below, labelleft=leftmost)
        for label, curve in curves.items():
            gid, (xs, ys) = f"loss-{len(hover)}", zip(*curve, strict=True)
            look = {**data.looks[label].both, "linewidth": 1.1, "markersize": 3.5}
            (handles[label],) = axes.plot(xs, ys, gid=gid, markevery=max(1, len(curve) // 6), **look)
            hover[gid] = f"{label}, {name}: {plain(round(ys[-1], 3))} at step {plain(round(xs[-1]))}"
    shown = [label for label in rows if label in handles]
    sheet.legend([handles[label] for label in shown], shown, left=legend, top=_TOP)
    caption = (
        f"Means over seeds (at most the first {_SEEDS}); a point of a training loss is the mean over a window of "
        "logged steps."
    )
    if len(rows) == _ROWS < len(data.scored):
        caption += f" Only the {_ROWS} rows with the best averages are drawn."
    return Chart(name=_NAME, title=_TITLE, caption=caption, figure=sheet.figure, hover=hover)


def _curves(data: ChartInput, row: Row) -> dict[str, Curve]:
    """Panel to curve, averaged over seeds."""
    by_panel: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in [record for record in row.records if record.status == "ok"][:_SEEDS]:
        for step, by_task in data.steps(record.key):
            for name, loss in by_task.items():
                by_panel[name][step].append(loss)
        for at, loss in _validation_losses(record.notes.get("stop_losses")):
            if math.isfinite(loss):
                by_panel[_VALIDATION][at].append(loss)
    curves = {
        name or _ALL: [(step, sum(values) / len(values)) for step, values in sorted(points.items())]
        for name, points in by_panel.items()
    }
    return {name: curve if name == _VALIDATION else windows(curve) for name, curve in curves.items()}


def windows(curve: Curve, *, most: int = _WINDOWS) -> Curve:
    """The curve itself, or at most ``most`` points, each the mean of consecutive points."""
    size = math.ceil(len(curve) / most)
    runs = [curve[at : at + size] for at in range(0, len(curve), size)]
    return [(_mean([x for x, _ in run]), _mean([y for _, y in run])) for run in runs]


def _validation_losses(value: object) -> Iterator[tuple[float, float]]:
    """The valid pairs of step and loss in ``notes["stop_losses"]``."""
    for pair in value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else ():
        if isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(n, int | float) for n in pair):
            yield float(pair[0]), float(pair[1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

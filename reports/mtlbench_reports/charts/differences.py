"""Difference of every row to a reference, task by task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, TwoSlopeNorm
from matplotlib.patches import Rectangle

from mtlbench.api.study import AT_MAJORITY, Row
from mtlbench.results.formatting import points
from mtlbench.results.multitask import difference
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart, without_scores
from mtlbench_reports.charts.sheet import Sheet, short, text_width
from mtlbench_reports.charts.style import FAINT, INK

_NAME = "differences"
_SIZE = 7.0
_EVEN = 0.245
"""Luminance at which white and our ink have the same contrast."""
_LEAST = 2.0
"""Minimum difference in points for the darkest colour, so that small differences look small."""
_FULL = 0.95
"""Quantile of the differences that gets the darkest colour, so that one bad row does not make all others pale."""


def differences(data: ChartInput) -> Iterator[Chart | OmittedChart]:
    """A heat map of rows by tasks, in points of the score."""
    rows = [row for row in data.table.rows if row.entries]
    title = "Differences to a reference, task by task"
    if len(rows) < 2:
        yield OmittedChart(name=_NAME, title=title, reason="fewer than two rows have scores")
        return
    against = next((row for row in rows if row.label == data.table.reference), None)
    if against is None:
        named = data.table.reference
        reason = f"there is no row {named!r} with an average" if named else "no two rows have an average"
        yield OmittedChart(name=_NAME, title=title, reason=reason)
        return
    others = [row for row in rows if row is not against]
    grid = [[difference(row, against, task) for task in (*data.table.tasks, None)] for row in others]
    if all(value is None for line in grid for value in line):
        yield OmittedChart(name=_NAME, title=title, reason=f"no row has a score of a seed that {against.label} has")
        return
    yield _chart(data, others, against, grid)


def _chart(data: ChartInput, rows: Sequence[Row], against: Row, grid: Sequence[Sequence[float | None]]) -> Chart:
    table = data.table
    suites = {task.partition("/")[0] for task in table.tasks}
    tasks = [task.partition("/")[2] or task if len(suites) == 1 else task for task in table.tasks]
    columns = [*(short(task, width=1.6) for task in tasks), "average"]
    labels = [short(row.label, width=2.6) for row in rows]
    side, head = max(map(text_width, labels)) + 0.2, max(map(text_width, columns)) * 0.72 + 0.2
    wide, high = 0.5, 0.26
    title = f"Difference to {against.label} in points, task by task"
    content = side + wide * len(columns) + 0.12 + max(0.3, head)
    sheet = Sheet(title=title, subtitle=table.title, width=max(4.6, content + 0.2), height=head + high * len(rows))
    axes = sheet.axes(side + 0.12, head, wide * len(columns) + 0.08, high * len(rows))
    axes.set(xlim=(0, len(columns) + 0.08 / wide), ylim=(len(rows), 0))
    axes.grid(False)
    axes.tick_params(pad=3, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    lefts = [at + (0.08 / wide if at == len(tasks) else 0) for at in range(len(columns))]
    axes.set_xticks([left + 0.35 for left in lefts], columns, rotation=45, ha="left", rotation_mode="anchor")
    axes.set_yticks([at + 0.5 for at in range(len(rows))], labels)
    sizes = sorted(abs(value) for line in grid for value in line if value is not None)
    full = max(sizes[int(_FULL * (len(sizes) - 1))], _LEAST)
    norm, colours = TwoSlopeNorm(0.0, -full, full), colormaps["PuOr"]
    hover = {}
    for y, (row, line) in enumerate(zip(rows, grid, strict=True)):
        for x, (left, value) in enumerate(zip(lefts, line, strict=True)):
            task = table.tasks[x] if x < len(tasks) else None
            entry = row.entries.get(task) if task else row.average
            mark = "†" if entry and entry.at_majority else ""
            gid = f"difference-{y}-{x}"
            _cell(axes, left, y, value, mark=mark, norm=norm, colours=colours, gid=gid)
            hover[gid] = _hover_text(row, against, task, value, at_majority=bool(mark))
    caption = (
        f"Score of the row minus that of {against.label}, mean over the seeds that both have; orange is below it, "
        "purple above, – has no score of a common seed. " + (f"† {AT_MAJORITY}. " if _marked(rows) else "")
    )
    caption += without_scores(table.rows)
    return Chart(name=_NAME, title=title, caption=caption.strip(), figure=sheet.figure, hover=hover)


def _marked(rows: Sequence[Row]) -> bool:
    return any(entry.at_majority for row in rows for entry in row.entries.values())


def _hover_text(row: Row, against: Row, task: str | None, value: float | None, *, at_majority: bool) -> str:
    text = "no score of a common seed" if value is None else f"{points(value, 2)} points to {against.label}"
    return f"{row.label}, {task or 'average'}: {text}{f'; {AT_MAJORITY}' if at_majority else ''}"


def _cell(
    axes: Axes,
    x: float,
    y: int,
    value: float | None,
    *,
    mark: str,
    norm: TwoSlopeNorm,
    colours: Colormap,
    gid: str,
) -> None:
    if value is None:
        axes.add_artist(Rectangle((x, y), 1, 1, facecolor="#F4F4F4", edgecolor="white", gid=gid))
        axes.text(x + 0.5, y + 0.5, "–", ha="center", va="center", size=_SIZE, color=FAINT)
        return
    colour = colours(norm(value))
    axes.add_artist(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8, gid=gid))
    ink = "white" if luminance(*colour[:3]) < _EVEN else INK
    axes.text(x + 0.5, y + 0.52, f"{points(value)}{mark}", ha="center", va="center", size=_SIZE, color=ink)


def luminance(red: float, green: float, blue: float) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

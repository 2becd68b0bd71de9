"""The architecture search of a variant: entropy and remaining operations over steps, mixtures at every cut, result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mtlbench.api.study import Row
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart
from mtlbench_reports.charts.scales import step_axis
from mtlbench_reports.charts.sheet import Sheet, short, text_width
from mtlbench_reports.charts.style import COLOURS, DASHES, INK, MARKERS, SMALL
from mtlbench_reports.charts.trajectories import Search, left, searches

_MOST = 3
"""Variants that are drawn, best average first."""
_TITLE = "Architecture search"
_SEEDS = 9
"""Seeds that the legend has room for."""
_CELL, _GAP = 0.17, 0.3


@dataclass(frozen=True, kw_only=True)
class _Seed:
    seed: int
    average: float
    searches: Sequence[Search]


def search(data: ChartInput) -> Iterator[Chart | OmittedChart]:
    """A chart for each variant that searched."""
    searched = [(row, seeds) for row in data.table.rows if (seeds := _seeds(row))]
    if not searched:
        yield OmittedChart(name="search", title=_TITLE, reason="no record holds the trajectory of a search")
    for at, (row, seeds) in enumerate(searched, start=1):
        name = "search" if len(searched) == 1 else f"search-{at}"
        if at > _MOST:
            reason = f"only the {_MOST} variants with the best averages are drawn"
            yield OmittedChart(name=name, title=f"{_TITLE} of {row.label}", reason=reason)
            continue
        yield _chart(data, row, seeds, name=name)


def _seeds(row: Row) -> list[_Seed]:
    """Seeds with a trajectory, best average first."""
    seeds = [
        _Seed(seed=record.cell.seed, average=record.average or 0.0, searches=run_searches)
        for record in row.records
        if record.status == "ok" and (run_searches := searches(record))
    ]
    return sorted(seeds, key=lambda seed: (-seed.average, seed.seed))


def _chart(data: ChartInput, row: Row, seeds: Sequence[_Seed], *, name: str) -> Chart:
    best = seeds[0]
    operations = list(dict.fromkeys(op for one in best.searches for op in one.operations))
    layers = [(one, at) for one in best.searches for at in range(len(one.cuts[0].mixtures))]
    names = [_layer_words(one, at, alone=len(best.searches) == 1) for one, at in layers]
    cuts = max(len(one.cuts) for one in best.searches)
    side = max(map(text_width, names)) + 0.2
    wide, high = _CELL * len(operations), _CELL * 1.2 * len(layers)
    head = max(text_width(short(name, width=1.2)) for name in operations) * 0.78 + 0.05
    columns = cuts + 1
    width = max(side + columns * (wide + _GAP) + 0.35, 8.6)
    title = f"Architecture search of {row.label}"
    sheet = Sheet(title=title, subtitle=data.table.title, width=width, height=2.3 + head + high + 0.5)
    hover = _curves(sheet, seeds)
    for at in range(columns):
        axes = sheet.axes(side + at * (wide + _GAP) + 0.05, 2.3 + head, wide, high)
        _frame(axes, operations, names if at == 0 else None, layers=len(layers))
        steps = sorted({one.cuts[at].step for one in best.searches if at < len(one.cuts)})
        under = f"before step {', '.join(map(str, steps))}" if at < cuts else "found"
        axes.set_xlabel(short(under, width=wide + 0.2), size=SMALL)
        hover |= _mixtures(axes, layers, operations, names, cut=at)
    caption = (
        f"Above, all seeds; below, seed {best.seed} (the best average): weights of the operations just before each "
        "cut, dots on those that stay, and the operations found. Equal weights are half dark, twice that is full; a "
        "blank was dropped before."
    )
    return Chart(name=name, title=title, caption=caption, figure=sheet.figure, hover=hover)


def _curves(sheet: Sheet, seeds: Sequence[_Seed]) -> dict[str, str]:
    entropy, count = sheet.axes(0.62, 0.08, 2.9, 1.6), sheet.axes(4.35, 0.08, 2.9, 1.6)
    entropy.set(ylabel="entropy of the mixtures", ylim=(-0.04, 1.06))
    count.set(ylabel="operations left per layer")
    for axes in (entropy, count):
        step_axis(axes)
    hover, handles = {}, []
    for at, seed in enumerate(sorted(seeds, key=lambda one: one.seed)):
        colour, marker, dash = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)], DASHES[at % len(DASHES)]
        for number, one in enumerate(seed.searches):
            gid = f"search-{at}-{number}"
            whose = f"seed {seed.seed}{f', {one.task}' if one.task else ''}"
            look = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 4}
            entropy.plot([cut.step for cut in one.cuts], [cut.entropy for cut in one.cuts], gid=gid, **look)
            entropies = ", ".join(f"{cut.entropy:.3f} before step {cut.step}" for cut in one.cuts)
            hover[gid] = f"{whose}: entropy {entropies}"
            xs, ys = zip(*left(one.cuts), strict=True)
            count.step(xs, ys, where="post", color=colour, linestyle=dash)
        handles.append((Line2D([], [], color=colour, marker=marker, linestyle=dash, markersize=4), f"seed {seed.seed}"))
    count.set_ylim(0, None)
    more = [(Line2D([], [], linestyle="none"), f"and {len(handles) - _SEEDS} more")] if len(handles) > _SEEDS else []
    lines, labels = zip(*handles[:_SEEDS], *more, strict=True)
    sheet.legend(lines, labels, left=7.5, top=0.08)
    return hover


def _frame(axes: Axes, operations: Sequence[str], names: Sequence[str] | None, *, layers: int) -> None:
    axes.set(xlim=(0, len(operations)), ylim=(layers, 0))
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.tick_params(pad=2, labeltop=True, labelbottom=False)
    xs = [at + 0.5 for at in range(len(operations))]
    labels = [short(name, width=1.2) for name in operations]
    axes.set_xticks(xs, labels, rotation=65, ha="left", va="bottom", rotation_mode="anchor", size=6)
    axes.set_yticks([at + 0.5 for at in range(layers)], names if names else [""] * layers)
    axes.xaxis.set_label_position("bottom")
    axes.xaxis.set_label_coords(0.5, -0.06 / (_CELL * 1.2 * layers))


def _mixtures(
    axes: Axes, layers: Sequence[tuple[Search, int]], operations: Sequence[str], names: Sequence[str], *, cut: int
) -> dict[str, str]:
    hover = {}
    dots: dict[str, list[tuple[float, float]]] = {"white": [], INK: []}
    for y, (one, layer) in enumerate(layers):
        mixture = _mixture(one, layer, cut)
        stays = _mixture(one, layer, cut + 1) if cut < len(one.cuts) else {}
        for x, operation in enumerate(operations):
            if operation not in mixture:
                continue
            gid = f"mixture-{cut}-{y}-{x}"
            weight = mixture[operation]
            shade = min(1.0, weight * len(mixture) / 2) if cut < len(one.cuts) else 1.0
            face = colormaps["Blues"](0.08 + 0.82 * shade)
            axes.add_artist(Rectangle((x, y), 1, 1, facecolor=face, edgecolor="white", linewidth=0.6, gid=gid))
            hover[gid] = f"{names[y]}, {operation}: " + (f"weight {weight:.4f}" if cut < len(one.cuts) else "found")
            if operation in stays:
                dots["white" if shade > 0.55 else INK].append((x + 0.5, y + 0.5))
    for colour, centres in dots.items():
        axes.plot([x for x, _ in centres], [y for _, y in centres], "o", markersize=2.6, color=colour)
    return hover


def _mixture(one: Search, layer: int, cut: int) -> dict[str, float]:
    """Weights before a cut; after the last one, the remaining operations."""
    if cut < len(one.cuts):
        mixtures = one.cuts[cut].mixtures
        return dict(mixtures[layer]) if layer < len(mixtures) else {}
    return dict.fromkeys(one.architecture[layer], 1.0) if layer < len(one.architecture) else {}


def _layer_words(one: Search, at: int, *, alone: bool) -> str:
    return f"layer {at + 1}" if alone else f"{short(one.task, width=1.4)} {at + 1}"

"""Held-out score against learning rate, for every method that was tuned."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.artist import Artist

from mtlbench.api.tuning import TunedMethod
from mtlbench_reports.charts.chart import Chart, ChartInput, OmittedChart
from mtlbench_reports.charts.scales import spread_axis
from mtlbench_reports.charts.sheet import Sheet, legend_height, legend_width

_NAME, _TITLE = "rates", "Held-out score against learning rate"
_WIDTH, _HEIGHT, _LEFT = 4.1, 3.0, 0.7


def rates(data: ChartInput) -> Iterator[Chart | OmittedChart]:
    """A line for each method through its trials; large points are the settings that were chosen. Nothing for a table
    that nobody asked to tune."""
    searches = [one for one in data.table.searches if one.trials and _label(one, data) in data.looks]
    if not searches:
        return
    labels = [one.variant for one in searches]
    sheet = Sheet(
        title=_TITLE,
        subtitle=data.table.title,
        width=_LEFT + _WIDTH + 0.15 + legend_width(labels),
        height=max(_HEIGHT + 0.6, legend_height(labels)),
    )
    axes = sheet.axes(_LEFT, 0.1, _WIDTH, _HEIGHT)
    hover: dict[str, str] = {}
    handles: list[Artist] = []
    for one in searches:
        look = data.looks[_label(one, data)]
        trials = sorted(one.trials, key=lambda trial: trial.learning_rate)
        axes.plot([t.learning_rate for t in trials], [t.mean for t in trials], **look.line)
        for trial in trials:
            gid = f"rate-{len(hover)}"
            settings = ", ".join(f"{name}={value}" for name, value in trial.settings.items()) or "default settings"
            over = f"mean of {len(trial.scores)} seeds" if len(trial.scores) > 1 else "one seed"
            hover[gid] = f"{one.variant}: {settings}, {trial.mean:.2f} ({over})"
            size = {"markersize": 9} if trial == one.winner else {}
            axes.plot(trial.learning_rate, trial.mean, gid=gid, zorder=3, **{**look.points, **size})
        handles += axes.plot([], [], **look.both)
    spread_axis(axes, [trial.learning_rate for one in searches for trial in one.trials], log=True)
    axes.set(xlabel="peak learning rate", ylabel="score on held-out training rows (%)")
    sheet.legend(handles, labels, left=_LEFT + _WIDTH + 0.15, top=0.1)
    caption = (
        "The large point of a line is the trial that was chosen. The best trials are means over several seeds, the "
        "others have one."
    )
    yield Chart(name=_NAME, title=_TITLE, caption=caption, figure=sheet.figure, hover=hover)


def _label(one: TunedMethod, data: ChartInput) -> str:
    """The row whose look the line has: the tuned one, or the default where that won."""
    tuned = f"{one.variant} (tuned)"
    return tuned if tuned in data.looks else one.variant

"""Axes for numbers of any magnitude: linear or logarithmic, with few round ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

_ROUND = (1, 2, 2.5, 5, 10)
_WIDE = 20
"""An axis is logarithmic from this ratio of the largest to the smallest value."""


def plain(value: float) -> str:
    """``0.05``, ``12``, ``163,840``; at most four decimals."""
    if value == 0 or abs(value) >= 1e12 or abs(value) < 1e-4:
        return f"{value:g}"
    return f"{value:,.4f}".rstrip("0").rstrip(".") if abs(value) < 1e4 else f"{value:,.0f}"


def brief(value: float) -> str:
    """``500``, ``1,100``, ``40k``, ``1.5M``."""
    if abs(value) < 1e4:
        return plain(value)
    size, letter = next((s, letter) for s, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= s)
    return f"{value / size:.4g}{letter}"


def differ_much(values: Iterable[float]) -> bool:
    """Whether the positive ones of ``values`` span orders of magnitude and none is negative."""
    numbers = list(values)
    positive = [value for value in numbers if value > 0]
    return bool(positive) and max(positive) >= _WIDE * min(positive) and min(numbers) >= 0


def spread_axis(axes: Axes, values: Iterable[float], *, along: str = "x", log: bool | None = None) -> None:
    """Scale the axis for ``values``: logarithmic if they span orders of magnitude, with 0 at its end if it occurs.

    ``log`` decides instead, if there is a positive value.
    """
    numbers = [value for value in values if math.isfinite(value)]
    positive = [value for value in numbers if value > 0]
    log = differ_much(numbers) if log is None else log and bool(positive) and min(numbers) >= 0
    axis: Axis = axes.xaxis if along == "x" else axes.yaxis
    scale, limits = (axes.set_xscale, axes.set_xlim) if along == "x" else (axes.set_yscale, axes.set_ylim)
    if not log:
        axis.set_major_locator(MaxNLocator(6, steps=_ROUND))
        axis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))
        return
    low, high, zero = min(positive), max(positive), min(numbers) == 0
    ticks = _decades(low, high)
    if zero:
        scale("symlog", linthresh=low, linscale=0.5)
        limits(-low * 0.4, high * 1.4)
        ticks = [0.0, *ticks]
    else:
        scale("log")
        limits(low / 1.4, high * 1.4)
    _fix(axis, ticks)


def step_axis(axes: Axes) -> None:
    """An x axis of training steps, with integer ticks."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=_ROUND))


def value_axis(axes: Axes, values: Sequence[float]) -> None:
    """An x axis with a tick at each of these values, logarithmic with base 2 if they span a factor of four or more."""
    ordered = sorted(set(values))
    if ordered[0] > 0 and ordered[-1] >= 4 * ordered[0]:
        axes.set_xscale("log", base=2)
        axes.set_xlim(ordered[0] / 1.25, ordered[-1] * 1.25)
    while len(ordered) > 8:
        ordered = ordered[::2]
    _fix(axes.xaxis, ordered, format_=plain)


def _fix(axis: Axis, ticks: Sequence[float], format_: Callable[[float], str] = brief) -> None:
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_(value)))


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps]
        ticks = [tick for tick in ticks if low / 1.4 <= tick <= high * 1.4]
        if len(ticks) <= 7:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 7)]

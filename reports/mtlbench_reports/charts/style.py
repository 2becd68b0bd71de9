"""One look for each variant, the same in every chart, and matplotlib's settings for all charts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Okabe and Ito's palette (https://jfly.uni-koeln.de/color/) without its yellow, which is hard to see on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1.2, 1, 1.2, 1, 1.2)))
INK, FAINT, GRID = "#333333", "#767676", "#E3E3E3"
FONT, SMALL = 8.5, 7.5

_RC: dict[Any, Any] = {  # matplotlib types each name
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": FONT,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT,
    "axes.titley": 1.0,
    "font.family": ["DejaVu Sans"],
    "font.size": FONT,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.borderaxespad": 0.0,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
    "pdf.fonttype": 42,
    "savefig.dpi": 160,
    "svg.hashsalt": "mtlbench",
    "text.color": INK,
    "text.hinting": "none",
    "text.parse_math": False,
    "xtick.bottom": False,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.color": FAINT,
    "ytick.left": False,
    "ytick.labelcolor": INK,
    "ytick.labelsize": SMALL,
}


@dataclass(frozen=True)
class Look:
    """The style of a variant. Colour, marker and dash differ, so that variants can be distinguished in greyscale."""

    colour: str
    marker: str
    dash: Any

    @property
    def points(self) -> dict[str, Any]:
        """For a plot of single points."""
        return {"color": self.colour, "marker": self.marker, "linestyle": "none", **_EDGE}

    @property
    def line(self) -> dict[str, Any]:
        """For a plot of a line."""
        return {"color": self.colour, "linestyle": self.dash}

    @property
    def both(self) -> dict[str, Any]:
        """For a plot of a line through points."""
        return {**self.points, **self.line}


_EDGE = {"markeredgecolor": "white", "markeredgewidth": 0.6}


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, in alphabetical order: no two of the first 77 share both colour and marker."""
    return {
        name: Look(COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)], DASHES[at % len(DASHES)])
        for at, name in enumerate(sorted(set(names)))
    }


@contextmanager
def drawing(*, text: Literal["text", "outlines"] = "outlines", families: Sequence[str] = ()) -> Iterator[None]:
    """Context with matplotlib's defaults and our settings, independent of the user's, which are restored afterwards.

    Names are never parsed as formulas. In an SVG, ``text`` writes text elements and ``outlines`` the shapes of letters.
    ``families`` replace the font, in order of preference.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        matplotlib.rcParams["font.family"] = list(families or _RC["font.family"])
        matplotlib.rcParams["svg.fonttype"] = "none" if text == "text" else "path"
        yield

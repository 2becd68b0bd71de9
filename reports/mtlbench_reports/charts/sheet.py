"""A figure laid out in inches from its upper left corner, so that no label is ever cut or overlapped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import ceil

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from mtlbench.text import one_line
from mtlbench_reports.charts.style import FAINT, SMALL

LINE = 0.165
"""Height of a line of text in a legend or a title, in inches."""
EDGE = 0.12
_X_LABEL, _Y_LABEL = 0.25, 0.45
"""Inches from a frame to its axes' labels; looking for the room that ticks leave takes a tenth of the drawing."""
_TITLE = 10.5
"""Size of a title; one face for all words, because every face in a PDF costs a twentieth of a second."""


class Sheet:
    """A figure with a title over a content area of ``width`` x ``height`` inches."""

    def __init__(self, *, title: str, subtitle: str, width: float, height: float) -> None:
        heads = wrapped(title, width=width - 2 * EDGE, size=_TITLE)
        under = wrapped(subtitle, width=width - 2 * EDGE, size=SMALL, lines=8)
        self.head = EDGE + (LINE * 1.15) * len(heads) + LINE * len(under) + 0.1
        self.width, self.height = width, height + self.head + EDGE
        self.figure = Figure(figsize=(self.width, self.height))
        top = self._up(EDGE - self.head)
        left = EDGE / self.width
        self.figure.text(left, top, "\n".join(heads), size=_TITLE, va="top", linespacing=1.15)
        below = top - LINE * 1.15 * len(heads) / self.height
        self.figure.text(left, below, "\n".join(under), size=SMALL, va="top", color=FAINT)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose frame has this place and size in the content area."""
        place = (left / self.width, self._up(top + height), width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        axes.xaxis.set_label_coords(0.5, -_X_LABEL / height)
        axes.yaxis.set_label_coords(-_Y_LABEL / width, 0.5)
        return axes

    def legend(self, handles: Sequence[Artist], labels: Iterable[str], *, left: float, top: float = 0.0) -> None:
        """A legend of one column with its upper left corner there; long labels are folded."""
        self.figure.legend(
            list(handles),
            ["\n".join(folded(label)) for label in labels],
            loc="upper left",
            bbox_to_anchor=(left / self.width, self._up(top)),
            labelspacing=0.45,
            handlelength=2.6,
        )

    def _up(self, down: float) -> float:
        return 1 - (self.head + down) / self.height


def legend_width(labels: Iterable[str]) -> float:
    """Inches that a legend with these labels takes."""
    return max((text_width(line) for label in labels for line in folded(label)), default=0.0) + 0.5


def legend_height(labels: Sequence[str]) -> float:
    """Likewise, downwards."""
    return sum(0.05 + 0.123 * len(folded(label)) for label in labels) + 0.1


def text_width(text: str, size: float = SMALL) -> float:
    """Inches of one line of text."""
    return 1.03 * _units(text) * size / 72  # drawn words are hinted and a little wider


@lru_cache(maxsize=4096)
def _units(text: str) -> float:
    """Width in units of the font size; letters that the font lacks count as wide ones."""
    return sum(_advances().get(ord(c), 1.0) for c in text)


def lacking(text: str) -> str:
    """The letters that the font of the charts lacks, each once; they are drawn as boxes."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(sorted({letter for letter in text if ord(letter) not in known}))


@lru_cache(maxsize=1)
def _advances() -> dict[int, float]:
    font = get_font(findfont("DejaVu Sans"))
    font.set_size(100, 72)
    codes = [code for code in font.get_charmap() if 32 <= code < 0x250]
    return {code: font.load_char(code).linearHoriAdvance / 65536 / 100 for code in codes}


def short(text: str, *, width: float = 2.3, size: float = SMALL) -> str:
    """Text with its middle cut out where it is wider than ``width`` inches."""
    text = one_line(text)
    if text_width(text, size) <= width:
        return text
    keep = len(text)
    while keep > 4:
        keep -= 1
        head = ceil(keep * 0.6)
        told = f"{text[:head]}…{text[len(text) - (keep - head) :]}"
        if text_width(told, size) <= width:
            return told
    return "…"


def folded(text: str, *, width: float = 2.1, lines: int = 3) -> list[str]:
    """A variant in lines of at most ``width`` inches, broken between its settings; cut when it needs more lines."""
    parts = re.findall(r"[^,+]+[,+]*", one_line(text)) or [text]
    found = [""]
    for part in parts:
        if found[-1] and text_width(found[-1] + part) > width:
            found.append("  ")
        found[-1] += part
    if len(found) > lines:
        found = [*found[: lines - 1], "".join([found[lines - 1], *(line.strip() for line in found[lines:])])]
    return [short(line, width=width) for line in found]


def wrapped(text: str, *, width: float, size: float, lines: int = 3) -> list[str]:
    """Text in lines of at most ``width`` inches; what does not fit into ``lines`` is cut with an ellipsis."""
    found, line = [], ""
    for word in one_line(text).split():
        longer = f"{line} {word}" if line else word
        if line and text_width(longer, size) > width:
            found.append(line)
            longer = word
        line = longer
    found = [short(part, width=width, size=size) for part in (*found, line) if part]
    if len(found) <= lines:
        return found
    return [*found[: lines - 1], short(f"{found[lines - 1]} …", width=width, size=size)]

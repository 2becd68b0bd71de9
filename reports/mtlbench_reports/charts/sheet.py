"""A figure laid out in inches from its upper left corner, so that no label is clipped or overlapped."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import ceil

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from mtlbench.text import one_line
from mtlbench_reports.charts.face import families
from mtlbench_reports.charts.style import FAINT, SMALL, drawing

LINE = 0.165
"""Height of a line of text in a legend or a title, in inches."""
EDGE = 0.12
_X_LABEL, _Y_LABEL = 0.25, 0.45
"""Inches from a frame to its axes' labels; fixed, because measuring tick labels takes a tenth of the time."""
_TITLE = 10.5
"""Size of a title; one font face for all texts, because every face in a PDF costs a twentieth of a second."""


class ChartFigure(Figure):
    """A figure that a notebook shows by itself, drawn with the settings of the charts."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        with drawing(families=families()):
            self.savefig(out, format="png")
        return out.getvalue()


class Sheet:
    """A figure with a title over a content area of ``width`` x ``height`` inches."""

    def __init__(self, *, title: str, subtitle: str, width: float, height: float) -> None:
        heads = wrapped(title, width=width - 2 * EDGE, size=_TITLE)
        under = wrapped(subtitle, width=width - 2 * EDGE, size=SMALL, lines=8)
        self.head = EDGE + (LINE * 1.15) * len(heads) + LINE * len(under) + 0.1
        self.width, self.height = width, height + self.head + EDGE
        self.figure = ChartFigure(figsize=(self.width, self.height))
        top = self._up(EDGE - self.head)
        left = EDGE / self.width
        self.figure.text(left, top, "\n".join(heads), size=_TITLE, va="top", linespacing=1.15)
        below = top - LINE * 1.15 * len(heads) / self.height
        self.figure.text(left, below, "\n".join(under), size=SMALL, va="top", color=FAINT)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose frame has this position and size in the content area."""
        position = (left / self.width, self._up(top + height), width / self.width, height / self.height)
        axes = self.figure.add_axes(position)
        axes.xaxis.set_label_coords(0.5, -_X_LABEL / height)
        axes.yaxis.set_label_coords(-_Y_LABEL / width, 0.5)
        return axes

    def legend(self, handles: Sequence[Artist], labels: Iterable[str], *, left: float, top: float = 0.0) -> None:
        """A legend of one column with its upper left corner at this position; long labels are wrapped."""
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
    """Width in inches of a legend with these labels."""
    return max((text_width(line) for label in labels for line in folded(label)), default=0.0) + 0.5


def legend_height(labels: Sequence[str]) -> float:
    """Height in inches of a legend with these labels."""
    return sum(0.05 + 0.123 * len(folded(label)) for label in labels) + 0.1


def text_width(text: str, size: float = SMALL) -> float:
    """Width in inches of one line of text."""
    return 1.03 * _units(text) * size / 72  # drawn text is hinted and slightly wider


@lru_cache(maxsize=4096)
def _units(text: str) -> float:
    """Width in units of the font size; characters that the font lacks count as wide ones."""
    return sum(_advances().get(ord(c), 1.0) for c in text)


def lacking(text: str) -> str:
    """The characters that the font of the charts lacks, each once; they are drawn as boxes."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(sorted({letter for letter in text if ord(letter) not in known}))


@lru_cache(maxsize=1)
def _advances() -> dict[int, float]:
    font = get_font(findfont("DejaVu Sans"))
    font.set_size(100, 72)
    codes = [code for code in font.get_charmap() if 32 <= code < 0x250]
    return {code: font.load_char(code).linearHoriAdvance / 65536 / 100 for code in codes}


def short(text: str, *, width: float = 2.3, size: float = SMALL) -> str:
    """Text with an ellipsis in the middle if it is wider than ``width`` inches."""
    text = one_line(text)
    if text_width(text, size) <= width:
        return text
    length = len(text)
    while length > 4:
        length -= 1
        head = ceil(length * 0.6)
        shortened = f"{text[:head]}…{text[len(text) - (length - head) :]}"
        if text_width(shortened, size) <= width:
            return shortened
    return "…"


def folded(text: str, *, width: float = 2.1, lines: int = 3) -> list[str]:
    """A variant in lines of at most ``width`` inches, broken between its settings; truncated to ``lines`` lines."""
    pieces = re.findall(r"[^,+]+[,+]*", one_line(text)) or [text]
    folded_lines = [""]
    for piece in pieces:
        if folded_lines[-1] and text_width(folded_lines[-1] + piece) > width:
            folded_lines.append("  ")
        folded_lines[-1] += piece
    if len(folded_lines) > lines:
        folded_lines = [
            *folded_lines[: lines - 1],
            "".join([folded_lines[lines - 1], *(line.strip() for line in folded_lines[lines:])]),
        ]
    return [short(line, width=width) for line in folded_lines]


def wrapped(text: str, *, width: float, size: float, lines: int = 3) -> list[str]:
    """Text in lines of at most ``width`` inches, truncated with an ellipsis to ``lines`` lines."""
    wrapped_lines, line = [], ""
    for word in one_line(text).split():
        longer = f"{line} {word}" if line else word
        if line and text_width(longer, size) > width:
            wrapped_lines.append(line)
            longer = word
        line = longer
    wrapped_lines = [short(piece, width=width, size=size) for piece in (*wrapped_lines, line) if piece]
    if len(wrapped_lines) <= lines:
        return wrapped_lines
    return [*wrapped_lines[: lines - 1], short(f"{wrapped_lines[lines - 1]} …", width=width, size=size)]

"""Numbers as a reader wants them."""

from __future__ import annotations

from mtlbench.tables import Spread

NONE = "–"
MARK = "†"


def memory(count: float) -> str:
    """``637 MiB`` or ``3.00 GiB``."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """``9.2 s``, ``2 min 30 s`` or ``2 h 01 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def mean(scores: Spread) -> str:
    """``66.8 ± 3.2``, without a deviation for one seed."""
    return f"{scores.mean:.1f}" if scores.sd is None else f"{scores.mean:.1f} ± {scores.sd:.1f}"


def count(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

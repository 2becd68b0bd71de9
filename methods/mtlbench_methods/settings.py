"""Checks of settings that several methods share."""

from __future__ import annotations

import math
from typing import Any

from mtlbench import Method, Setup
from mtlbench.errors import RequestError


def check(method: Method, setting: str, *, holds: bool, allowed: str) -> None:
    """Refuse a setting that does not hold.

    Raises:
        RequestError: naming the setting, its value and what is allowed.
    """
    if not holds:
        raise RequestError(f"{method.name}[{setting}={getattr(method, setting)}]: {setting} must be {allowed}.")


def backbone_width(setup: Setup) -> int:
    """The hidden size of the backbone: what its first projection reads."""
    return setup.shapes[setup.target_modules[0]][1]


def check_low_rank(method: Any) -> None:
    """Check ``rank``, ``alpha``, ``target`` and, where the method has it, ``dropout``."""
    check(method, "rank", holds=method.rank >= 1, allowed="a whole number of at least 1")
    check(method, "alpha", holds=math.isfinite(method.alpha) and method.alpha > 0, allowed="a number above 0")
    dropout = getattr(method, "dropout", 0.0)
    check(method, "dropout", holds=0 <= dropout < 1, allowed="at least 0 and below 1")
    words = method.target.split("+")
    check(
        method,
        "target",
        holds=all(word.isidentifier() for word in words),
        allowed="all, attention, ffn, or last parts of projection names joined by '+', such as q_proj+v_proj",
    )

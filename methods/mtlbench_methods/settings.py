"""Checks of settings and optimizer groups that several methods share."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from mtlbench import Method
from mtlbench.errors import RequestError

if TYPE_CHECKING:
    import torch


def check(method: Method, setting: str, *, holds: bool, allowed: str) -> None:
    """Refuse a setting that does not hold.

    Raises:
        RequestError: naming the setting, its value and what is allowed.
    """
    if not holds:
        raise RequestError(f"{method.name}[{setting}={getattr(method, setting)}]: {setting} must be {allowed}.")


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
        allowed="all, attention, or last parts of projection names joined by '+', such as q_proj+v_proj",
    )


def undecayed(model: torch.nn.Module, learning_rate: float, *, names: Collection[str]) -> list[dict[str, Any]]:
    """Two optimizer groups: the parameters whose last part of the name is in ``names`` have no weight decay.

    Decay would pull tables by task towards the same row, and gates and scales away from their start.
    """
    named = [(name.rpartition(".")[2], p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if name not in names]
    others = [p for name, p in named if name in names]
    return [{"params": decayed, "lr": learning_rate}, {"params": others, "lr": learning_rate, "weight_decay": 0.0}]

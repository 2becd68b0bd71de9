"""Findings of checks, and comparisons of tensors that raise them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Outcome = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of a method on one backbone."""

    check: str
    backbone: str
    """``tiny Llama`` or ``tiny T5``."""
    outcome: Outcome
    message: str
    """For a failed check what was observed and what to change; for a skipped one the reason; otherwise the promise."""


class PromiseBroken(Exception):
    """A promise does not hold; the message says what was observed."""


class NotApplicable(Exception):
    """A check does not apply to this method; the message says why."""


TOLERANCE = 1e-4
"""Maximum difference of equal values, relative to the largest value."""


def gap(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the largest value of ``one``; infinite for different shapes and for NaN."""
    if one.shape != other.shape:
        return float("inf")
    difference = float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))
    return difference if difference == difference else float("inf")


def expect_same(one: Tensor, other: Tensor, what: str) -> None:
    """Raise :class:`PromiseBroken` unless both are equal to :data:`TOLERANCE`."""
    difference = gap(one, other)
    if not difference <= TOLERANCE:
        raise PromiseBroken(f"{what} differ by {100 * difference:.2g} % of the largest")


def expect_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str, when: str) -> None:
    """Raise :class:`PromiseBroken` unless both are bitwise equal, except for NaN."""
    unequal = one.keys() ^ other.keys()
    for name in one.keys() & other.keys():
        if not torch.equal(one[name].nan_to_num(), other[name].nan_to_num()):
            unequal.add(name)
    if unequal:
        raise PromiseBroken(f"{what} differ {when}: {some(unequal)}")


def some(names: Collection[str]) -> str:
    """The first names, sorted, and their total number."""
    first = ", ".join(sorted(names)[:3])
    return first if len(names) <= 3 else f"{first}, ... ({len(names)} in all)"

"""What a check is, and what it finds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass

Outcome = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of a method on one backbone."""

    check: str
    backbone: str
    """``tiny Llama`` or ``tiny T5``."""
    outcome: Outcome
    message: str
    """Of a failed check what was seen and what to change; of a skipped one the reason; otherwise what holds."""


class PromiseBroken(Exception):
    """A promise does not hold; the message says what was seen."""


class NotApplicable(Exception):
    """A check says nothing about this method; the message says why."""


TOLERANCE = 1e-4
"""Largest difference that counts as equal, relative to the largest value."""


def gap(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the largest of ``one``; infinite for other shapes, and where there is a nan."""
    if one.shape != other.shape:
        return float("inf")
    found = float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))
    return found if found == found else float("inf")


def expect_same(one: Tensor, other: Tensor, what: str) -> None:
    """Raise :class:`PromiseBroken` unless both are equal to :data:`TOLERANCE`."""
    found = gap(one, other)
    if not found <= TOLERANCE:
        raise PromiseBroken(f"{what} differ by {100 * found:.2g} % of the largest")


def expect_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str, when: str) -> None:
    """Raise :class:`PromiseBroken` unless both are equal, bit for bit but for nan."""
    unequal = one.keys() ^ other.keys()
    for name in one.keys() & other.keys():
        if not torch.equal(one[name].nan_to_num(), other[name].nan_to_num()):
            unequal.add(name)
    if unequal:
        raise PromiseBroken(f"{what} differ {when}: {some(unequal)}")


def some(names: Collection[str]) -> str:
    """A few of the names, sorted, and how many there are."""
    first = ", ".join(sorted(names)[:3])
    return first if len(names) <= 3 else f"{first}, ... ({len(names)} in all)"

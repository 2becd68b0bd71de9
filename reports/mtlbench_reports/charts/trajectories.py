"""Architecture searches in a record's notes, validated, because notes come from plugins and old versions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlbench.api.record import Record


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A step at which operations were dropped, and the mixtures just before it."""

    step: int
    keep: int
    """Remaining operations per layer after it."""
    entropy: float
    """Entropy of the mixtures divided by that of uniform ones: in [0, 1]."""
    mixtures: tuple[Mapping[str, float], ...]
    """Operation to weight, for each layer."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of one encoder."""

    task: str
    """Empty for an encoder that all tasks share."""
    cuts: tuple[Cut, ...]
    architecture: tuple[tuple[str, ...], ...]
    """Remaining operations of each layer."""

    @property
    def operations(self) -> list[str]:
        """All candidates, in the order of the search."""
        first = self.cuts[0].mixtures if self.cuts else ()
        return list(dict.fromkeys(name for mixture in first for name in mixture))


def searches(record: Record) -> list[Search]:
    """The searches in the record's notes that can be parsed, one for each encoder."""
    return [search for value in record.notes.values() if isinstance(value, Mapping) for search in _read(value)]


def _read(note: Mapping[str, Any]) -> Iterator[Search]:
    by_task = note.get("by_task")
    for task, searched in by_task.items() if isinstance(by_task, Mapping) else [("", note)]:
        try:
            search = _search(str(task), searched)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        if search.cuts:
            yield search


def _search(task: str, note: Mapping[str, Any]) -> Search:
    return Search(
        task=task,
        cuts=tuple(_cut(cut) for cut in note["trajectory"]),
        architecture=tuple(tuple(map(str, layer)) for layer in note["architecture"]),
    )


def _cut(cut: Mapping[str, Any]) -> Cut:
    mixtures = tuple({str(name): _finite(weight) for name, weight in layer.items()} for layer in cut["mixtures"])
    if not mixtures or not all(mixtures):
        raise ValueError("a layer without operations")
    return Cut(step=int(cut["step"] or 0), keep=int(cut["keep"]), entropy=_finite(cut["entropy"]), mixtures=mixtures)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def left(cuts: Sequence[Cut]) -> list[tuple[int, int]]:
    """Step and remaining operations per layer from then on, from step 0."""
    start = max(len(mixture) for mixture in cuts[0].mixtures)
    return [(0, start), *((cut.step, cut.keep) for cut in cuts)]

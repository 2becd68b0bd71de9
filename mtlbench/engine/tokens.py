"""Rows as token ids, encoded exactly as lm-eval encodes what it scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row: what the backbone reads and what it must answer."""

    task: int
    """Task id."""
    context: tuple[int, ...]
    """Prompt tokens; the encoder's input of an encoder-decoder backbone."""
    target: tuple[int, ...]
    """Answer tokens, the only ones with a loss."""

    @property
    def length(self) -> int:
        """Prompt and answer together, in tokens."""
        return len(self.context) + len(self.target)


def by_task(rows: Sequence[TokenRow], tasks: int) -> list[list[int]]:
    """Places of the rows of each task, for ``tasks`` tasks."""
    places: list[list[int]] = [[] for _ in range(tasks)]
    for place, row in enumerate(rows):
        places[row.task].append(place)
    return places

"""Stored predictions of finished cells, and what they and the step logs show to be degenerate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtlbench.api.record import Record
from mtlbench.api.study import Flag, Predictions, Steps
from mtlbench.files.copies import in_copies
from mtlbench.results.degenerate import flags_of

if TYPE_CHECKING:
    from mtlbench.api.study import TaskAnswers

_CHUNK = 32
"""Cells read per forked process; fewer are read faster than a process starts."""


@dataclass(frozen=True, kw_only=True)
class StoredEvidence:
    """Predictions and flags of one cell."""

    answers: Mapping[str, TaskAnswers] | None
    flags: tuple[Flag, ...]


def evidence_of(done: Sequence[Record], *, predictions: Predictions, steps: Steps) -> list[StoredEvidence]:
    """Predictions and flags of the finished cells ``done``, in order; many are read in forked processes."""

    def read(chunk: Sequence[Record]) -> list[StoredEvidence]:
        answered = [(record, predictions(record.key)) for record in chunk]
        return [StoredEvidence(answers=a, flags=flags_of(r, answers=a, steps=steps(r.key))) for r, a in answered]

    chunks = [done[at : at + _CHUNK] for at in range(0, len(done), _CHUNK)]
    with in_copies(read, chunks) as results:
        if len(chunks) > 1:
            import scipy.stats  # noqa: F401  # imported while the others read: slow, and needed by the tests of a large study
        return [item for chunk in results() for item in chunk]

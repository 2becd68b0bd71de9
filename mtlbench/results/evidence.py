"""What lies beside the records of finished cells: their answers, and what answers and step logs say is degenerate."""

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

_TOGETHER = 32
"""Cells that are looked at in one go; fewer are read sooner than a copy of the process starts."""


@dataclass(frozen=True, kw_only=True)
class StoredEvidence:
    """Of one cell."""

    answers: Mapping[str, TaskAnswers] | None
    flags: tuple[Flag, ...]


def evidence_of(done: Sequence[Record], *, predictions: Predictions, steps: Steps) -> list[StoredEvidence]:
    """What is evidence_of each of the finished cells ``done``; hundreds of them are read in copies of this process."""

    def read(part: Sequence[Record]) -> list[StoredEvidence]:
        found = [(record, predictions(record.key)) for record in part]
        return [StoredEvidence(answers=a, flags=flags_of(r, answers=a, steps=steps(r.key))) for r, a in found]

    parts = [done[at : at + _TOGETHER] for at in range(0, len(done), _TOGETHER)]
    with in_copies(read, parts) as results:
        if len(parts) > 1:
            import scipy.stats  # noqa: F401  # takes as long as the reading, and the tests of a large study need it
        return [one for part in results() for one in part]

"""What is counted of the rows of a cell: rows that were truncated, and evaluation rows that are training rows too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

WARN_SHARE = 0.01
"""A warning is logged where more than this share of a split is truncated, or of the evaluation rows repeated."""


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """Rows of one split of a task."""

    rows: int
    cut: int = 0
    """Rows whose prompt lost tokens on the left. Answers are never cut."""
    questions: int = 0
    """Of these, rows that lost tokens of the question itself, not only of few-shot examples before it."""

    @property
    def cut_share(self) -> float:
        return self.cut / self.rows if self.rows else 0.0


@dataclass(frozen=True, kw_only=True)
class RowCheck:
    """What was counted of one task."""

    train: SplitCounts
    evaluation: SplitCounts | None = None
    """``None`` for a task that is not scored."""
    repeated: int = 0
    """Evaluation rows whose prompt and choices are those of a training row."""

    @property
    def cut(self) -> int:
        """Truncated rows of both splits."""
        return self.train.cut + (self.evaluation.cut if self.evaluation else 0)

    @property
    def warns(self) -> bool:
        """Whether a share is so large that scores may be about something else than they seem."""
        scored = self.evaluation or SplitCounts(rows=0)
        shares = (self.train.cut_share, scored.cut_share, self.repeated / scored.rows if scored.rows else 0.0)
        return max(shares) > WARN_SHARE

    def sentences(self, task: str, *, max_length: int, verb: str = "were") -> Iterator[str]:
        """One sentence for what was cut and one for what is repeated, where there is any.

        Args:
            verb: ``would be`` for a forecast.
        """
        splits = {"training": self.train, "evaluation": self.evaluation}
        cut = {kind: split for kind, split in splits.items() if split is not None and split.cut}
        if cut:
            total, questions = sum(s.cut for s in cut.values()), sum(s.questions for s in cut.values())
            lost = "the question itself" if questions == total else f"the question itself in {questions} of them"
            counts = " and ".join(_count(split.cut, split.rows, f"{kind} rows") for kind, split in cut.items())
            yield (
                f"{task}: {counts} {verb} truncated to {max_length} tokens, on the left of the prompt"
                f"{f' ({lost})' if questions else ' (few-shot examples only)'}; answers are whole."
            )
        if self.repeated and self.evaluation is not None:
            counts = _count(self.repeated, self.evaluation.rows, "evaluation rows")
            yield f"{task}: {counts} are duplicates of training rows: same prompt, same choices."

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RowCheck:
        """The check that wrote ``value``."""
        scored = value["evaluation"]
        return cls(
            train=SplitCounts(**value["train"]),
            evaluation=None if scored is None else SplitCounts(**scored),
            repeated=value["repeated"],
        )


def _count(some: int, of: int, what: str) -> str:
    share = 100 * some / of
    return f"{some:,} of {of:,} {what} ({share:.0f} %)" if share >= 1 else f"{some:,} of {of:,} {what} ({share:.1g} %)"

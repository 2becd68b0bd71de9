"""What a search found for one method: its trials on held-out training rows, and the settings that won."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mtlbench.api.cell import digest
from mtlbench.api.method import Value

STUDY = "study:"
"""What the ``tuning`` field of a protocol begins with where settings come from a study; the study's id follows."""


@dataclass(frozen=True, kw_only=True)
class TrialScores:
    """One trial."""

    settings: Mapping[str, Value]
    """The searched settings; empty for the default."""
    learning_rate: float
    """Peak learning rate it trained with."""
    scores: Mapping[int, float]
    """Seed to the average over the tasks, in percent, on held-out training rows. Seeds that failed are omitted."""

    @property
    def mean(self) -> float:
        """Mean over its seeds; there is at least one."""
        return sum(self.scores.values()) / len(self.scores)


@dataclass(frozen=True, kw_only=True)
class TunedMethod:
    """The search of one method within a study. Methods of one study were searched with the same effort."""

    effort: Mapping[str, Any]
    """What is equal for all methods of the study: its digest is the study's id."""
    method: str
    fixed: Mapping[str, Value]
    """Settings that the request gave."""
    variant: str
    """The method with its fixed settings, as a table shows it."""
    fields: Mapping[str, str]
    """Searched settings to their range or choices."""
    trials: tuple[TrialScores, ...]
    """By number; trials without any score are omitted."""
    finals: tuple[int, ...] = field(default=())
    """Seeds on which a trial must have scores to win; empty where one score was enough."""

    @property
    def study(self) -> str:
        """The id of the study: 12 hexadecimal digits."""
        return study_id(self.effort)

    @property
    def finalists(self) -> tuple[TrialScores, ...]:
        """Trials that can win."""
        return tuple(trial for trial in self.trials if set(self.finals) <= set(trial.scores))

    @property
    def winner(self) -> TrialScores | None:
        """The finalist with the highest mean, the first of equals; ``None`` where no trial has the scores to win."""
        return max(self.finalists, key=lambda trial: trial.mean, default=None)

    @property
    def settings(self) -> Mapping[str, Value]:
        """Settings of a cell that uses the result."""
        return {**self.fixed, **(self.winner.settings if self.winner else {})}

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        trials = [{**asdict(t), "scores": {str(seed): s for seed, s in t.scores.items()}} for t in self.trials]
        return {**asdict(self), "trials": trials, "finals": list(self.finals)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TunedMethod:
        """The search that wrote ``value``.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        trials = tuple(
            TrialScores(
                settings=dict(one["settings"]),
                learning_rate=float(one["learning_rate"]),
                scores={int(seed): float(score) for seed, score in one["scores"].items()},
            )
            for one in value["trials"]
        )
        return cls(**{**value, "trials": trials, "finals": tuple(value["finals"])})


def study_id(effort: Mapping[str, Any]) -> str:
    """Digest of an effort: 12 hexadecimal digits."""
    return digest(dict(effort), length=12)

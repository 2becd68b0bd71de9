"""Records: the result of one cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mtlbench.api.cell import Cell

SCHEMA = 1
"""Version of the record layout; a reader refuses newer ones."""

Status = Literal["ok", "failed", "skipped"]
FailureClass = Literal["oom", "timeout", "killed", "user", "plugin", "disk", "corrupt", "device", "infra"]


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """How one task was scored."""

    score: float
    """Mean of the task's metrics, in percent."""
    metrics: Mapping[str, float]
    """Each metric as computed by lm-eval."""
    rows: int
    """Number of evaluation examples."""
    majority: float | None = None
    """Accuracy of the most frequent label in percent, where the task has choices with one gold label each."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the cell cost. Times in seconds, memory in bytes."""

    trainable_parameters: int
    backbone_parameters: int
    inference_parameters: int = 0
    """Parameters and buffers the method adds at inference, after merging and collapsing."""
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    total_seconds: float = 0.0
    steps: int = 0
    train_rows: int = 0
    """Examples trained on, with repetitions."""
    train_tokens: int = 0
    """Real tokens trained on, without padding."""
    padded_tokens: int = 0
    """Token positions computed, including padding."""
    tokens_per_second: float = 0.0
    """Real training tokens per second of training."""
    peak_memory: int | None = None
    """Device memory on an accelerator; resident memory of the worker's process on a CPU."""
    peak_memory_kind: str = ""
    """``device`` or ``process``."""
    adapter_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a cell failed or was skipped."""

    kind: FailureClass | Literal["refused"]
    message: str
    next_step: str
    """One sentence that says what to do now."""
    frames: tuple[str, ...] = ()
    """The last frames of the traceback."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one cell."""

    cell: Cell
    status: Status
    scores: Mapping[str, TaskScore] = field(default_factory=dict)
    """Full task name to score."""
    costs: Costs | None = None
    failure: Failure | None = None
    guards: Mapping[str, bool] = field(default_factory=dict)
    """Name of each check of the cell and whether it passed."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Further results of training or the method: early stopping, searched architecture, examples and tokens by task."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Versions, host, device, threads, measured matrix rate, times. Not part of the cell's identity."""

    @property
    def key(self) -> str:
        return self.cell.key

    @property
    def average(self) -> float | None:
        """Mean score over the tasks, or ``None`` when there are none."""
        if not self.scores:
            return None
        return sum(s.score for s in self.scores.values()) / len(self.scores)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return {
            "schema": SCHEMA,
            "key": self.key,
            "cell": self.cell.to_json(),
            "status": self.status,
            "scores": {name: asdict(score) for name, score in self.scores.items()},
            "costs": asdict(self.costs) if self.costs else None,
            "failure": asdict(self.failure) if self.failure else None,
            "guards": dict(self.guards),
            "notes": dict(self.notes),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """The record that wrote ``value``."""
        failure = value["failure"]
        return cls(
            cell=Cell.from_json(value["cell"]),
            status=value["status"],
            scores={name: TaskScore(**score) for name, score in value["scores"].items()},
            costs=Costs(**value["costs"]) if value["costs"] else None,
            failure=Failure(**{**failure, "frames": tuple(failure["frames"])}) if failure else None,
            guards=dict(value["guards"]),
            notes=dict(value["notes"]),
            provenance=dict(value["provenance"]),
        )

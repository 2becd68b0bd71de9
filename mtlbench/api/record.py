"""Records: the result of one cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict, cast

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
class ProbeScore:
    """A probe task before and after training; it was never trained on."""

    before: TaskScore
    """Of the untrained backbone."""
    after: TaskScore | None
    """``None`` where the method cannot answer a task that it did not train."""
    refusal: str = ""
    """Why there is no score after training."""

    @property
    def forgetting(self) -> float | None:
        """Score before minus score after training, in points; negative where training helped."""
        return None if self.after is None else self.before.score - self.after.score


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the cell cost. Times in seconds, memory in bytes."""

    trainable_parameters: int
    """What is left of them after training, without what a search or a budget of ranks drops."""
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
    """From the attachment of the method to the end of training. On an accelerator what torch allocated on the device:
    backbone and cell. On a CPU resident memory of the worker's process: libraries, tokenised rows, backbone and cell.
    What earlier cells held is freed before."""
    peak_memory_kind: str = ""
    """``device`` or ``process``."""
    adapter_bytes: int = 0
    """Of the saved adapter on disk."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a cell failed or was skipped."""

    kind: FailureClass | Literal["refused"]
    message: str
    next_step: str
    """One sentence that says what to do now."""
    frames: tuple[str, ...] = ()
    """The last frames of the traceback."""


class MicroBatchChange(TypedDict):
    """After which step memory ran out, and how many rows a forward pass has had since."""

    after_step: int
    rows: int


class StageNote(TypedDict):
    """One stage of a training that has several: the tasks trained, from which step on and for how many."""

    tasks: list[str]
    steps: list[int]
    best_step: int | None
    stopped_early: bool


class BalanceNote(TypedDict, total=False):
    """What a balancer did in training."""

    balancer: str
    """Its name and settings."""
    weights: dict[str, float | None]
    """Full task name to its mean weight over the steps with rows of it; ``None`` where there were none."""
    cosines: dict[str, dict[str, float | None]]
    """Task interference, where gradients are weighed: full names of two tasks to the mean cosine of their gradients,
    over the parameters that both train and the steps with rows of both."""


class Notes(TypedDict, total=False):
    """What is remembered of a training. Modules of a method may add keys of their own, which JSON can hold."""

    parameters_attached: int
    """That require gradients after ``attach``."""
    parameters_at_once: int
    """The largest number trained in one stage of training; earlier versions did not write it."""
    best_step: int | None
    stopped_early: bool
    stop_losses: list[Any]
    """Pairs of step and loss on the early-stopping split."""
    stop_scores: list[Any]
    """Pairs of step and mean of the tasks' metrics in percent on that split, where the protocol selects by metric."""
    validation_examples: dict[str, int]
    """Task to its examples in that split; earlier versions did not write it."""
    rows_per_task: dict[str, int]
    tokens_per_task: dict[str, int]
    row_layout: str
    """How rows went through the model: ``end to end``, with ``attention by row bounds`` where a kernel took them, or
    ``padded`` with the reason."""
    attention: str
    """The kernel that ``attention=auto`` came to and why, where it is not ``sdpa``."""
    not_adapted: str
    """Weights of the layers that the method passes by: experts that are no linears."""
    tasks_per_step: float
    """Mean number of tasks in a step."""
    largest_share_of_step: float
    """Mean share of a step's rows that the task with most rows had."""
    task_weighting: str
    """How the losses of a step weighed: ``rows``, ``tasks``, the protocol's weights, ``own`` of the method, or
    ``balanced by NAME``."""
    balance: BalanceNote
    """Only where the protocol has a balancer."""
    merging: str
    """How a method that merges was scored where memory ran out for a second copy of the weights."""
    stages: list[StageNote]
    merge: dict[str, Any]
    """Of a method that merges updates: how, the scale and the density taken, the share ``kept`` of the squared norm,
    and what was ``tried`` as triples of scale, density and score on the validation split, lower is better."""
    chat_template: str
    """What the chat template does not allow, where one is applied and it does not render every turn."""
    row_checks: dict[str, dict[str, Any]]
    """Full task name to a :class:`~mtlbench.api.row_checks.RowCheck`: truncated rows, and evaluation rows that are
    training rows."""


class Disturbances(TypedDict, total=False):
    """What went otherwise than planned in a cell; a key is there only where it did."""

    attempts: int
    """Attempts it took, this one included."""
    resumed_from_step: list[int]
    checkpoint_problems: list[str]
    """Why earlier checkpoints were not used."""
    micro_batch: list[MicroBatchChange]
    eval_tokens_per_batch: int
    """Tokens of an evaluation batch, where memory ran out with more."""


class Provenance(Disturbances, total=False):
    """Where and by what a cell was run. None of it is part of the cell's identity; earlier versions wrote less."""

    versions: Mapping[str, str]
    """Package to version."""
    python: str
    system: str
    host: str
    pid: int
    device: str
    gpu_uuid: str
    """UUID of the device of this process, as `nvidia-smi -L` lists it; absent on a CPU."""
    driver: str
    """Version of the NVIDIA driver, where there is one."""
    cuda: str
    """Version of CUDA that torch is built for; absent on a CPU."""
    device_why: str
    """Why ``--device auto`` took the processor although the system has a GPU."""
    threads: int
    cached_rows: int
    """Training and evaluation rows whose tokens were read from the cache on disk."""
    float32_gflops: float
    bfloat16_gflops: float
    foreign_device_bytes: int
    """Device memory that other programs held."""
    workers_per_device: int
    """Workers that shared the device, each with as much of its memory, where it was more than one."""
    processes: int
    """Processes that shared the training, where it was more than one."""
    shards: int
    """Processes that kept a part of the backbone each."""
    backbone_fingerprint: str
    dtype: str
    protocol_hash: str
    trained_in: str
    """Key of the cell whose training this one took over, where its method is built on another's; its costs of training
    are that cell's."""
    plugin_commits: dict[str, str]
    """Distribution of a plugin that is installed editable to the git commit of its folder; ``-dirty`` follows where
    files there differ from the commit."""
    data_revisions: dict[str, str]
    """Data set to its revision on the hub."""
    started: float
    finished: float
    """In seconds since 1970."""
    adapter_sha256: str
    samples_sha256: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one cell."""

    cell: Cell
    status: Status
    scores: Mapping[str, TaskScore] = field(default_factory=dict)
    """Full task name to score."""
    probe: Mapping[str, ProbeScore] = field(default_factory=dict)
    """Full name of each probe task to its scores; they are in no average."""
    costs: Costs | None = None
    failure: Failure | None = None
    guards: Mapping[str, bool] = field(default_factory=dict)
    """Name of each check made on the cell and whether it held."""
    notes: Notes = field(default_factory=Notes)
    """Early stop, architecture found, rows and tokens of each task."""
    provenance: Provenance = field(default_factory=Provenance)
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
            **({"probe": {name: asdict(score) for name, score in self.probe.items()}} if self.probe else {}),
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
            probe={name: _probe_score(score) for name, score in value.get("probe", {}).items()},
            costs=Costs(**value["costs"]) if value["costs"] else None,
            failure=Failure(**{**failure, "frames": tuple(failure["frames"])}) if failure else None,
            guards=dict(value["guards"]),
            notes=cast(Notes, dict(value["notes"])),
            provenance=cast(Provenance, dict(value["provenance"])),
        )


def _probe_score(value: Mapping[str, Any]) -> ProbeScore:
    after = value["after"]
    return ProbeScore(
        before=TaskScore(**value["before"]),
        after=None if after is None else TaskScore(**after),
        refusal=value["refusal"],
    )

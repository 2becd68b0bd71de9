"""Cells: what is planned, run, cached, skipped or failed. Names and numbers only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mtlbench.api.method import Value


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, *, length: int = 16) -> str:
    """First ``length`` hexadecimal digits of the SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that must be equal for two rows to be compared."""

    data: str = "demo"
    """Where rows come from, with a digest of what is there: ``demo:<digest>``, ``hub`` or ``folder:<digest>``."""
    prompts: str = ""
    """Version of lm-eval whose task objects make the prompts."""
    max_length: int = 256
    """Rows longer than this many tokens are cut on the left of the prompt."""
    train_rows: int | None = None
    """At most this many training rows per task; ``None`` takes all."""
    eval_rows: int | None = None
    """At most this many evaluation rows per task; ``None`` takes all."""
    eval_from_train: float = 0.0
    """Share of each task's training rows that is kept from training and scored instead of the evaluation split, which
    is then not used at all; 0 scores the evaluation split."""
    held_out: float = 0.1
    """Share of the training rows kept from training: half stops training early, half is for architecture search."""
    epochs: float = 3.0
    """Passes over the joint training rows; ignored when ``steps`` is given."""
    steps: int | None = None
    batch_size: int = 32
    """Rows per optimizer step."""
    micro_batch: int | None = None
    """Rows per forward pass; ``None`` takes the whole batch."""
    learning_rate: float = 1e-3
    """Peak learning rate where a method sets none."""
    schedule: str = "cosine"
    """``cosine``, ``linear`` or ``constant`` after the warm-up."""
    warmup: float = 0.06
    """Share of the steps with a linearly rising learning rate."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    mixing: str = "proportional"
    """``proportional``, ``uniform``, ``temperature:T`` or ``capped:ROWS``."""
    evals_per_run: int = 4
    """How often the early-stopping split is scored during training; 0 never stops early."""
    patience: int = 2
    """Training stops after this many scores in a row without a better one."""
    dtype: str = "auto"
    """``auto`` (bf16 autocast where the device has the unit), ``float32`` or ``bfloat16``."""
    attention: str = "sdpa"
    """``sdpa`` or ``eager``."""
    checkpointing: bool = False
    """Recompute layers in backward to save memory."""
    tuning: str = "none"
    """How much tuning produced the settings, in words: ``none``, or what ``mtlbench tune`` says."""

    def hash(self) -> str:
        """Short digest of all fields."""
        return digest(asdict(self), length=12)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method with its settings x the tasks trained jointly x backbone x protocol x seed."""

    method: str
    settings: Mapping[str, Value] = field(default_factory=dict)
    """Settings given explicitly, as in ``lora[rank=16]``."""
    tasks: tuple[str, ...]
    """Full task names, such as ``glue/rte``, in the order that gives the task ids."""
    model: str
    protocol: Protocol
    seed: int = 0
    weights: str = ""
    """Digest of the files of an embedded or local backbone; empty for a hub id."""
    plugins: Mapping[str, str] = field(default_factory=dict)
    """Distribution name to version of the packages that own the method and the suites."""

    @property
    def key(self) -> str:
        """Name of everything this cell leaves behind: 24 hexadecimal digits."""
        return digest(self.to_json(), length=24)

    @property
    def variant(self) -> str:
        """The method as a table shows it: ``lora[rank=16]``, or ``prefixnas+lora[rank=4]``."""
        members = self.method.split("+")
        if len(members) == 1:
            return f"{self.method}{_bracket(self.settings)}"
        words = [
            member + _bracket({k.partition(".")[2]: v for k, v in self.settings.items() if k.startswith(f"{member}.")})
            for member in members
        ]
        own = _bracket({k: v for k, v in self.settings.items() if "." not in k})
        return "+".join(words if not own else [*words, own])

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "tasks": list(self.tasks),
            "model": self.model,
            "protocol": asdict(self.protocol),
            "seed": self.seed,
            "weights": self.weights,
            "plugins": dict(self.plugins),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cell:
        """The cell that wrote ``value``; fields of a newer protocol are an error."""
        known = {f.name for f in fields(Protocol)}
        protocol = value["protocol"]
        unknown = sorted(set(protocol) - known)
        if unknown:
            raise ValueError(f"protocol fields {unknown} are unknown to this version")
        return cls(
            method=value["method"],
            settings=dict(value["settings"]),
            tasks=tuple(value["tasks"]),
            model=value["model"],
            protocol=Protocol(**protocol),
            seed=value["seed"],
            weights=value.get("weights", ""),
            plugins=dict(value["plugins"]),
        )


def _bracket(settings: Mapping[str, Value]) -> str:
    inner = ",".join(f"{k}={_word(v)}" for k, v in sorted(settings.items()))
    return f"[{inner}]" if inner else ""


def _word(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)

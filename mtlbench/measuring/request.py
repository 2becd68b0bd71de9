"""From options to rows: each row is one method variant to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mtlbench.api.cell import digest
from mtlbench.api.method import Value
from mtlbench.backbones.names import check_model
from mtlbench.errors import RequestError, did_you_mean
from mtlbench.planning.presets import preset
from mtlbench.planning.settings import read_settings, split_methods

RANDOM = "random:"
"""Prefix of the name of a backbone with random weights."""
SHAPES = ("llama-7b", "t5-large")
PARTS = ("training", "inference", "serving")


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """One method variant and how to measure it; plain values only."""

    method: str
    settings: Mapping[str, Value] = field(default_factory=dict)
    variant: str
    model: str
    """``demo``, a folder, a hub id, or ``random:llama-7b`` for random weights."""
    tasks: int
    """Number of tasks in the training mixture."""
    batch_size: int
    shortest: int
    """Tokens of the shortest example."""
    longest: int
    steps: int
    """Timed training steps."""
    warmup: int
    """Steps before the timed ones."""
    serving: tuple[int, ...]
    """Numbers of tasks to serve."""
    parts: tuple[str, ...]
    """Which of :data:`PARTS` to measure."""
    dtype: str
    checkpointing: bool
    device: str
    threads: int | None
    seed: int = 0

    @property
    def name(self) -> str:
        """File name of the row: the method and a digest of all fields."""
        return f"{self.method.replace('+', '-')}-{digest(self.to_json(), length=12)}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object for :meth:`from_json`."""
        return {**asdict(self), "serving": list(self.serving), "parts": list(self.parts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MeasureRow:
        """The inverse of :meth:`to_json`."""
        return cls(**{**value, "serving": tuple(value["serving"]), "parts": tuple(value["parts"])})


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """The options of the command, with defaults."""

    methods: str
    model: str = "demo"
    tasks: int = 4
    batch_size: int = 8
    lengths: str = "64"
    steps: int = 30
    warmup: int = 5
    serving: str = "1,10,100"
    parts: str = "training,inference,serving"
    dtype: str = "auto"
    checkpointing: bool = False
    device: str = "auto"
    threads: int | None = None


def make_rows(options: Mapping[str, Any]) -> tuple[MeasureRow, ...]:
    """The rows of a command.

    Raises:
        RequestError: an option is unknown or out of range.
    """
    known = {f.name for f in fields(MeasureOptions)}
    for name in options:
        if name not in known:
            raise RequestError(f"measure has no option {name!r}. {did_you_mean(name, known)}")
    if "methods" not in options:
        raise RequestError("--methods is missing. Example: mtlbench measure --methods lora,mtl_lora,peml")
    checked = MeasureOptions(**options)
    for name, least in (("tasks", 1), ("batch_size", 1), ("steps", 2), ("warmup", 0)):
        if getattr(checked, name) < least:
            raise RequestError(f"{name} must be at least {least}, got {getattr(checked, name)}.")
    check_measured_model(checked.model)
    shortest, longest = _lengths(checked.lengths)
    rows = []
    for name, raw in split_methods(checked.methods):
        settings = read_settings(name, raw)
        rows.append(
            MeasureRow(
                method=name,
                settings=settings,
                variant=_variant(name, settings),
                model=checked.model,
                tasks=checked.tasks,
                batch_size=checked.batch_size,
                shortest=shortest,
                longest=longest,
                steps=checked.steps,
                warmup=checked.warmup,
                serving=_numbers(checked.serving),
                parts=_parts(checked.parts),
                dtype=checked.dtype,
                checkpointing=checked.checkpointing,
                device=checked.device,
                threads=checked.threads,
            )
        )
    return tuple(rows)


def check_measured_model(model: str) -> None:
    """Reject an unavailable backbone.

    Raises:
        RequestError: it is neither in :data:`SHAPES` nor a backbone that ``run`` accepts.
    """
    if not model.startswith(RANDOM):
        check_model(model)
        return
    shape = model.removeprefix(RANDOM)
    if shape not in SHAPES:
        raise RequestError(f"There is no shape {shape!r} for random weights. {did_you_mean(shape, SHAPES)}")


def _lengths(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    try:
        shortest, longest = int(first), int(last if colon else first)
    except ValueError:
        raise RequestError(
            f"--lengths {text!r} cannot be read. Write tokens, such as 64, or a range: 32:128."
        ) from None
    if not 8 <= shortest <= longest:
        raise RequestError(f"--lengths {text!r}: examples have at least 8 tokens, and the shortest comes first.")
    return shortest, longest


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({int(number) for number in text.split(",")}))
    except ValueError:
        raise RequestError(f"--serving {text!r} cannot be read. Write numbers of tasks, such as 1,10,100.") from None
    if not 1 <= numbers[0] <= numbers[-1] <= 1000:
        raise RequestError(f"--serving {text!r}: numbers of tasks are between 1 and 1000.")
    return numbers


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in PARTS:
            raise RequestError(f"--parts has no {name!r}. {did_you_mean(name, PARTS)}")
    return tuple(name for name in PARTS if name in names)


def _variant(name: str, settings: Mapping[str, Value]) -> str:
    from mtlbench.api.cell import Cell, Protocol

    return Cell(method=name, settings=settings, tasks=(), model="", protocol=Protocol()).variant


def with_preset(name: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a preset, overridden by ``options``.

    Raises:
        RequestError: there is no such preset, or it is one of `mtlbench run`.
    """
    if name is None:
        return dict(options)
    defaults = preset(name)
    if "measure" not in defaults:
        raise RequestError(f"The preset {name!r} trains and scores: use mtlbench run --preset {name}.")
    return {**defaults["measure"], **options}

"""Words to rows: each row is one method variant to measure."""

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
"""What the name of a backbone with random weights begins with."""
SHAPES = ("llama-7b", "t5-large")
PARTS = ("training", "inference", "serving")


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """One method variant and how it is measured: names and numbers only."""

    method: str
    settings: Mapping[str, Value] = field(default_factory=dict)
    variant: str
    model: str
    """``demo``, a folder, a hub id, or ``random:llama-7b``: a shape with random weights."""
    tasks: int
    """Tasks in every training batch's mixture."""
    batch_size: int
    shortest: int
    """Tokens of the shortest row."""
    longest: int
    steps: int
    """Training steps that are timed."""
    warmup: int
    """Steps before them."""
    serving: tuple[int, ...]
    """Numbers of tasks that are served."""
    parts: tuple[str, ...]
    """Which of :data:`PARTS` are measured."""
    dtype: str
    checkpointing: bool
    device: str
    threads: int | None
    seed: int = 0

    @property
    def name(self) -> str:
        """Names the row's file: the method and a digest of everything."""
        return f"{self.method.replace('+', '-')}-{digest(self.to_json(), length=12)}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return {**asdict(self), "serving": list(self.serving), "parts": list(self.parts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MeasureRow:
        """The row that wrote ``value``."""
        return cls(**{**value, "serving": tuple(value["serving"]), "parts": tuple(value["parts"])})


@dataclass(frozen=True, kw_only=True)
class MeasureWords:
    """The words of the command, defaults filled in."""

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


def make_rows(words: Mapping[str, Any]) -> tuple[MeasureRow, ...]:
    """The rows of a command.

    Raises:
        RequestError: a word is unknown or out of range.
    """
    known = {f.name for f in fields(MeasureWords)}
    for name in words:
        if name not in known:
            raise RequestError(f"measure has no option {name!r}. {did_you_mean(name, known)}")
    if "methods" not in words:
        raise RequestError("--methods is missing. Example: mtlbench measure --methods lora,mtl_lora,peml")
    asked = MeasureWords(**words)
    for name, least in (("tasks", 1), ("batch_size", 1), ("steps", 2), ("warmup", 0)):
        if getattr(asked, name) < least:
            raise RequestError(f"{name} must be at least {least}, got {getattr(asked, name)}.")
    check_measured_model(asked.model)
    shortest, longest = _lengths(asked.lengths)
    rows = []
    for name, raw in split_methods(asked.methods):
        settings = read_settings(name, raw)
        rows.append(
            MeasureRow(
                method=name,
                settings=settings,
                variant=_variant(name, settings),
                model=asked.model,
                tasks=asked.tasks,
                batch_size=asked.batch_size,
                shortest=shortest,
                longest=longest,
                steps=asked.steps,
                warmup=asked.warmup,
                serving=_numbers(asked.serving),
                parts=_parts(asked.parts),
                dtype=asked.dtype,
                checkpointing=asked.checkpointing,
                device=asked.device,
                threads=asked.threads,
            )
        )
    return tuple(rows)


def check_measured_model(model: str) -> None:
    """Refuse a backbone that cannot be had.

    Raises:
        RequestError: it is no shape of :data:`SHAPES` and nothing that ``run`` takes.
    """
    if not model.startswith(RANDOM):
        check_model(model)
        return
    shape = model.removeprefix(RANDOM)
    if shape not in SHAPES:
        raise RequestError(f"There is no shape {shape!r} for random weights. {did_you_mean(shape, SHAPES)}")


def _lengths(words: str) -> tuple[int, int]:
    first, colon, last = words.partition(":")
    try:
        shortest, longest = int(first), int(last if colon else first)
    except ValueError:
        raise RequestError(
            f"--lengths {words!r} cannot be read. Write tokens, such as 64, or a range: 32:128."
        ) from None
    if not 8 <= shortest <= longest:
        raise RequestError(f"--lengths {words!r}: rows have at least 8 tokens, and the shortest comes first.")
    return shortest, longest


def _numbers(words: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({int(word) for word in words.split(",")}))
    except ValueError:
        raise RequestError(f"--serving {words!r} cannot be read. Write numbers of tasks, such as 1,10,100.") from None
    if not 1 <= numbers[0] <= numbers[-1] <= 1000:
        raise RequestError(f"--serving {words!r}: numbers of tasks are between 1 and 1000.")
    return numbers


def _parts(words: str) -> tuple[str, ...]:
    parts = tuple(word.strip() for word in words.split(","))
    for part in parts:
        if part not in PARTS:
            raise RequestError(f"--parts has no {part!r}. {did_you_mean(part, PARTS)}")
    return tuple(part for part in PARTS if part in parts)


def _variant(name: str, settings: Mapping[str, Value]) -> str:
    from mtlbench.api.cell import Cell, Protocol

    return Cell(method=name, settings=settings, tasks=(), model="", protocol=Protocol()).variant


def with_preset(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The words of a preset with those ``given`` on top.

    Raises:
        RequestError: there is no such preset, or it is one of `mtlbench run`.
    """
    if name is None:
        return dict(given)
    words = preset(name)
    if "measure" not in words:
        raise RequestError(f"The preset {name!r} trains and scores: use mtlbench run --preset {name}.")
    return {**words["measure"], **given}

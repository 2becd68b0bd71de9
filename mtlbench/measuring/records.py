"""Measured rows on disk, one JSON file each; rows of different hardware are never combined."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mtlbench.errors import RequestError, StoreError
from mtlbench.files.sealed import overwrite

SCHEMA = 1
"""Version of the file format."""


class Percentiles(TypedDict):
    """Percentiles of times in seconds, and their count ``n``."""

    p50: float
    p95: float
    p99: float
    n: int


class Conditions(TypedDict):
    """Load by other processes while a row was measured."""

    others_cores: float
    """Cores that other processes used on average."""
    load_average: float
    device_neighbours: int | None
    """Other processes on the accelerator; ``None`` where unknown."""
    disturbed: bool


class MeasuredTraining(TypedDict):
    """Cost of training; all but the first three keys only if the method trains. Memory in bytes."""

    trainable_parameters: int
    kept_parameters: int
    """Trainable parameters after the training."""
    trains: bool
    step_seconds: NotRequired[Percentiles]
    tokens_per_second: NotRequired[float]
    padded_tokens_per_second: NotRequired[float]
    memory: NotRequired[dict[str, int | None]]
    """Fields of :class:`~mtlbench.measuring.conditions.DeviceMemory`."""
    memory_before: NotRequired[int | None]
    joules_per_step: NotRequired[float | None]
    adapter_bytes: NotRequired[int]
    flops_counted: NotRequired[int]
    flops_backbone: NotRequired[float]
    share_of_matrix_rate: NotRequired[float]


class MeasuredInference(TypedDict):
    """Cost of the finished model."""

    added_parameters: int
    prompt_seconds: Percentiles
    batch_seconds: Percentiles
    seconds_per_new_token: float


class MeasuredServing(TypedDict):
    """Cost of one way of serving a number of tasks. Median times in seconds."""

    way: str
    """``routed``, ``unified`` or ``separate``."""
    tasks: int
    one_by_one_seconds: float
    switching_seconds: float
    mixed_seconds: float
    disk_switch_seconds: NotRequired[float]
    adapters_held: NotRequired[int]


class Measured(TypedDict):
    """Content of a row's file; a failed row lacks later keys."""

    row: dict[str, Any]
    """As :meth:`~mtlbench.measuring.request.MeasureRow.to_json` gives it."""
    status: str
    """``ok``, ``refused``, ``oom`` or ``failed``."""
    measured: str
    """Time of the measurement (ISO 8601)."""
    reason: NotRequired[str]
    hardware: NotRequired[dict[str, Any]]
    """Rows are comparable only if this is equal."""
    dtype: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    backbone_parameters: NotRequired[int]
    matrix_gflops: NotRequired[float]
    training: NotRequired[MeasuredTraining]
    inference: NotRequired[MeasuredInference]
    serving: NotRequired[list[MeasuredServing]]
    conditions: NotRequired[Conditions]


def write_measured(folder: Path, name: str, measured: Measured) -> Path:
    """Write a row, replacing an earlier measurement of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    overwrite(path, json.dumps({"schema": SCHEMA, **measured}, indent=1).encode())
    return path


def read_measured(folder: Path) -> list[Measured]:
    """All rows of a folder, in order of measurement.

    Raises:
        StoreError: a file is damaged or has another schema.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            body = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise StoreError(f"The measurement {str(path)!r} cannot be read: {error}. Measure it again.") from error
        if body.get("schema") != SCHEMA:
            raise StoreError(f"{str(path)!r} has schema {body.get('schema')}, this version reads {SCHEMA}.")
        rows.append(body)
    return sorted(rows, key=lambda body: str(body["measured"]))


def check_hardware(rows: Iterable[Measured]) -> None:
    """Reject rows of different hardware: their times and memory cannot be compared.

    Raises:
        RequestError: the hardware differs; the message names the fields.
    """
    hardware: Sequence[Mapping[str, Any]] = [row["hardware"] for row in rows if row.get("hardware")]
    names = dict.fromkeys(name for one in hardware for name in one)
    seen = {name: sorted({str(one.get(name)) for one in hardware}) for name in names}
    differing = [f"{name} ({' and '.join(values)})" for name, values in seen.items() if len(values) > 1]
    if differing:
        raise RequestError(
            f"These rows were measured on different hardware and cannot be compared: {'; '.join(differing)}. "
            "Measure all of them on one machine, each into a folder of its own with --out."
        )

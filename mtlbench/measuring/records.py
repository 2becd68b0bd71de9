"""Measured rows on disk: one JSON file each; rows of different hardware are never shown together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mtlbench.errors import RequestError, StoreError
from mtlbench.files.sealed import overwrite

SCHEMA = 1
"""Version of the layout of a file."""


class Percentiles(TypedDict):
    """Of times in seconds; ``n`` is how many were timed."""

    p50: float
    p95: float
    p99: float
    n: int


class Conditions(TypedDict):
    """What else used the device while a row was measured."""

    others_cores: float
    """Cores that other processes used on average."""
    load_average: float
    device_neighbours: int | None
    """Other processes on the accelerator; ``None`` where nobody counts them."""
    disturbed: bool


class MeasuredTraining(TypedDict):
    """What training costs; all but the first three keys only where the method trains. Memory in bytes."""

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
    """What the finished model costs."""

    added_parameters: int
    prompt_seconds: Percentiles
    batch_seconds: Percentiles
    seconds_per_new_token: float


class MeasuredServing(TypedDict):
    """What one way of serving a number of tasks costs. Times are medians, in seconds."""

    way: str
    """``routed``, ``unified`` or ``separate``."""
    tasks: int
    one_by_one_seconds: float
    switching_seconds: float
    mixed_seconds: float
    disk_switch_seconds: NotRequired[float]
    adapters_held: NotRequired[int]


class Measured(TypedDict):
    """What a row's file holds; a row that failed lacks what was not reached."""

    row: dict[str, Any]
    """As :meth:`~mtlbench.measuring.request.MeasureRow.to_json` gives it."""
    status: str
    """``ok``, ``refused``, ``oom`` or ``failed``."""
    measured: str
    """When, as ISO 8601."""
    reason: NotRequired[str]
    hardware: NotRequired[dict[str, Any]]
    """What must be equal for two rows to be compared."""
    dtype: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    backbone_parameters: NotRequired[int]
    matrix_gflops: NotRequired[float]
    training: NotRequired[MeasuredTraining]
    inference: NotRequired[MeasuredInference]
    serving: NotRequired[list[MeasuredServing]]
    conditions: NotRequired[Conditions]


def write_measured(folder: Path, name: str, measured: Measured) -> Path:
    """Write a row, in place of an earlier measurement of the same."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    overwrite(path, json.dumps({"schema": SCHEMA, **measured}, indent=1).encode())
    return path


def read_measured(folder: Path) -> list[Measured]:
    """Every row of a folder, in the order they were measured.

    Raises:
        StoreError: a file is damaged or of a newer version.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            body = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise StoreError(f"The measurement {str(path)!r} cannot be read: {error}. Measure it again.") from error
        if body.get("schema") != SCHEMA:
            raise StoreError(f"{str(path)!r} has schema {body.get('schema')}, this version reads {SCHEMA}.")
        found.append(body)
    return sorted(found, key=lambda body: str(body["measured"]))


def check_hardware(rows: Iterable[Measured]) -> None:
    """Times and memory of different hardware say nothing about methods.

    Raises:
        RequestError: rows come from different hardware; names the fields that differ.
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

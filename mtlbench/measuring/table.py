"""Measured rows as text tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtlbench.measuring.records import Measured, check_hardware
from mtlbench.measuring.request import MeasureRow
from mtlbench.text import aligned, local_name, one_line

MIB = 2**20
DISTURBED = "*"


def table_lines(rows: Sequence[Measured]) -> Iterator[str]:
    """Tables of training, inference and serving; disturbed rows are marked.

    Raises:
        RequestError: the rows were measured on different hardware.
    """
    check_hardware(rows)
    measured = [row for row in rows if row["status"] == "ok"]
    hardware: Mapping[str, Any] = next((row["hardware"] for row in rows if row.get("hardware")), {})
    yield ", ".join(f"{name} {value}" for name, value in hardware.items())
    for title, kind, cells in (
        ("training", "training", _training),
        ("inference, after the method's finish", "inference", _inference),
        ("serving, one row for each task; seconds for all of them", "serving", _serving),
    ):
        lines = [line for row in measured if row.get(kind) for line in cells(row)]
        if lines:
            yield ""
            yield title
            heads = {"training": _TRAINING, "inference": _INFERENCE, "serving": _SERVING}[kind]
            yield from (f"  {line}" for line in aligned([heads, *lines]))
    yield from _notes(rows)


_TRAINING = [
    "method", "on", "batch x tokens", "trainable", "step ms p50", "p95", "p99", "tokens/s", "with padding", "peak MiB",
    "reserved", "driver", "GFLOP", "/ backbone", "of matrix rate", "J/step", "adapter MiB",
]  # fmt: skip
_INFERENCE = ["method", "on", "prompt ms p50", "p95", "p99", "batch ms p50", "ms per new token", "added parameters"]
_SERVING = ["method", "on", "way", "tasks", "one by one", "of it switching", "mixed batch", "switch from disk"]


def _training(row: Measured) -> Iterator[list[str]]:
    training = row["training"]
    if not training["trains"]:
        yield [*_name(row), "trains nothing", *["-"] * (len(_TRAINING) - 4)]
        return
    memory, step = training["memory"], training["step_seconds"]
    yield [
        *_name(row),
        f"{training['trainable_parameters']:,}",
        *(f"{1000 * step[name]:.1f}" for name in ("p50", "p95", "p99")),
        f"{training['tokens_per_second']:,.0f}",
        f"{training['padded_tokens_per_second']:,.0f}",
        _mib(memory["allocated"] if memory["resident"] is None else memory["resident"]),
        _mib(memory["reserved"]),
        _mib(memory["driver"]),
        f"{training['flops_counted'] / 1e9:.2f}",
        f"{training['flops_counted'] / training['flops_backbone']:.2f}",
        f"{100 * training['share_of_matrix_rate']:.0f} %",
        "-" if training["joules_per_step"] is None else f"{training['joules_per_step']:.1f}",
        f"{training['adapter_bytes'] / MIB:.2f}",
    ]


def _inference(row: Measured) -> Iterator[list[str]]:
    inference = row["inference"]
    prompt = inference["prompt_seconds"]
    yield [
        *_name(row)[:2],
        *(f"{1000 * prompt[name]:.2f}" for name in ("p50", "p95", "p99")),
        f"{1000 * inference['batch_seconds']['p50']:.2f}",
        f"{1000 * inference['seconds_per_new_token']:.2f}",
        f"{inference['added_parameters']:,}",
    ]


def _serving(row: Measured) -> Iterator[list[str]]:
    for entry in row["serving"]:
        disk = entry.get("disk_switch_seconds")
        yield [
            *_name(row)[:2],
            entry["way"],
            str(entry["tasks"]),
            f"{entry['one_by_one_seconds']:.4f}",
            f"{entry['switching_seconds']:.4f}",
            f"{entry['mixed_seconds']:.4f}",
            "-" if disk is None else f"{disk:.4f}",
        ]


def _name(row: Measured) -> list[str]:
    request = MeasureRow.from_json(row["row"])
    mark = DISTURBED if row["conditions"]["disturbed"] else ""
    lengths = str(request.longest) if request.shortest == request.longest else f"{request.shortest}:{request.longest}"
    return [f"{request.variant}{mark}", one_line(local_name(request.model)), f"{request.batch_size} x {lengths}"]


def _notes(rows: Sequence[Measured]) -> Iterator[str]:
    disturbed = [row for row in rows if row.get("conditions", {}).get("disturbed")]
    if disturbed:
        yield ""
        most = max(row["conditions"]["others_cores"] for row in disturbed)
        text = f"other processes used the machine meanwhile, up to {most:.1f} cores"
        yield f"{DISTURBED} {text}: measure again on an idle machine."
    versions: Mapping[str, set[str]] = {}
    for row in rows:
        versions = {**versions, **{n: versions.get(n, set()) | {v} for n, v in row.get("versions", {}).items()}}
    for name, seen in versions.items():
        if len(seen) > 1:
            yield f"The rows used different versions of {name}: {', '.join(sorted(seen))}."
    for row in rows:
        if row["status"] != "ok":
            yield f"{MeasureRow.from_json(row['row']).variant}: {row['status']}: {one_line(str(row.get('reason', '')))}"


def _mib(amount: Any) -> str:
    return "-" if amount is None else f"{amount / MIB:,.0f}"

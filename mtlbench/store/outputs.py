"""Per-example predictions as Parquet, with a checksum of the values, as Parquet's own does not cover the whole file;
and step logs."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtlbench.files.sealed import Damaged, overwrite

_CHECKSUM = b"mtlbench.sha256"


def write_samples(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``rows``; all must have the keys of the first one.

    Raises:
        DiskError: there is no room for them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    table = table.replace_schema_metadata({_CHECKSUM: _checksum(table.to_pylist())})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    overwrite(path, sink.getvalue())


def read_samples(path: Path) -> list[dict[str, Any]] | None:
    """The rows that :func:`write_samples` wrote, or ``None`` when there is no file.

    Raises:
        Damaged: the values are not those written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    try:
        table = pq.ParquetFile(path).read()
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise Damaged(f"not readable as Parquet: {error}") from error
    stored = (table.schema.metadata or {}).get(_CHECKSUM)
    if stored != _checksum(rows):
        raise Damaged("the checksum does not match")
    return rows


def _checksum(rows: list[dict[str, Any]]) -> bytes:
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest().encode()


def lines_since(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of ``path`` from byte ``offset`` on, and the offset for the next call."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return _parsed(data[:end]), offset + end


def listed(folder: Path) -> list[str]:
    """Names of the files of a folder, unsorted and without temporary ones; nothing where there is no folder."""
    try:
        return [name for name in os.listdir(folder) if name[0] != "."]  # noqa: PTH208 - no path for each of thousands
    except FileNotFoundError:
        return []


def latest_attempt(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the latest attempt.

    One that resumed from a checkpoint has a line ``{"total": steps, "done": steps}``: the steps that earlier attempts
    logged up to there are included, so that every step occurs once.
    """
    earlier: list[dict[str, Any]] = []
    latest: list[dict[str, Any]] = []
    for line in lines:
        if "started" in line:
            earlier, latest = latest or earlier, []
        elif "total" in line:
            done = line.get("done", 0)
            latest = [line, *(step for step in earlier if step.get("step", math.inf) <= done)]
        else:
            latest.append(line)
    return latest


def _parsed(data: bytes) -> list[dict[str, Any]]:
    """The JSON objects of ``data``, one per line; skips incomplete lines and other JSON values."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")  # parsing all at once takes half the time
        if len(values) == len(lines):
            return [value for value in values if isinstance(value, dict)]
    except ValueError:
        pass
    return [value for line in lines if isinstance(value := _value(line), dict)]


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None

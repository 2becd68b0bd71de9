"""Per-example predictions as Parquet, with a checksum of the values: Parquet's own does not cover the whole file."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtlbench.files.sealed import Damaged, overwrite

_CHECKSUM = b"mtlbench.sha256"


def write_samples(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``rows``; all have the keys of the first one.

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
    """What :func:`write_samples` was given, or ``None`` when there is no file.

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
    told = (table.schema.metadata or {}).get(_CHECKSUM)
    if told != _checksum(rows):
        raise Damaged("the checksum does not match")
    return rows


def _checksum(rows: list[dict[str, Any]]) -> bytes:
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest().encode()


def lines_since(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of ``path`` from byte ``offset`` on, and the offset to ask for next."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return _parsed(data[:end]), offset + end


def latest_attempt(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the latest attempt.

    One that went on from a checkpoint says so in its line ``{"total": steps, "done": steps}``: what the attempts before
    it logged up to there belongs to it, so that every step is there once.
    """
    earlier: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for line in lines:
        if "started" in line:
            earlier, found = found or earlier, []
        elif "total" in line:
            done = line.get("done", 0)
            found = [line, *(step for step in earlier if step.get("step", math.inf) <= done)]
        else:
            found.append(line)
    return found


def _parsed(data: bytes) -> list[dict[str, Any]]:
    """The JSON objects of ``data``, one per line; what is torn or no object is left out."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")  # one call for all takes half the time
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

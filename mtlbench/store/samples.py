"""Per-example predictions as Parquet, with a checksum of the values: Parquet's own does not cover the whole file."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from mtlbench.store.files import Damaged, overwrite

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

"""The cache folder, shared by all studies of a user, and cached tables of generated data."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.files.temporary import atomic_write

if TYPE_CHECKING:
    import pyarrow

    from mtlbench.api.task import Rows

logger = logging.getLogger(__name__)
_HEX = re.compile(r"[0-9a-f]{64}")


def cache_folder() -> Path | None:
    """``$MTLBENCH_CACHE``, else ``$XDG_CACHE_HOME/mtlbench``, else ``~/.cache/mtlbench``.

    Entries, or the whole folder, can be deleted at any time; they are made again. ``None`` where the user has no home:
    ``HOME`` is not set and the system does not know the user id, as in containers. Nothing is cached there.
    """
    folder = os.environ.get("MTLBENCH_CACHE")
    try:
        if folder:
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mtlbench"
    except RuntimeError:
        logger.info("this user has no home folder: nothing is cached; set HOME or MTLBENCH_CACHE to a folder")
        return None


SETTLED_NS = 2 * 10**9
"""A file written less than this long ago may be written again without another time stamp."""


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered until the file is written again or replaced.

    It is known again by its path, size, time stamps and inode.
    """
    folder, before = cache_folder(), _stamp(path)
    entry = None
    if folder is not None:
        name = hashlib.sha256(repr((str(path.resolve()), before)).encode()).hexdigest()
        entry = folder / "digests" / name[:2] / name
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if _HEX.fullmatch(known := entry.read_text(encoding="ascii")):
                return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settled = time.time_ns() - max(before[1:3]) > SETTLED_NS
    if entry is not None and settled and _stamp(path) == before:
        write_cached(entry, lambda made: made.write_bytes(digest.encode()))
    return digest


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def write_cached(path: Path, write: Callable[[Path], object]) -> None:
    """Write an entry atomically with ``write``; concurrent writers of one entry write the same content.

    If the folder is not writable, a warning is logged and nothing is cached.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as made:
            write(made)
    except OSError as error:
        logger.warning("nothing is cached for the next study: %s", error)


def unusable(path: Path, error: Exception) -> None:
    """Log why an entry is made again."""
    logger.warning("the cache entry %s cannot be used (%s) and is made again", path, error)


def cached_table(key: str, make: Callable[[], Rows]) -> pyarrow.Table:
    """The table cached under ``key``, else that of the rows from ``make``, then cached as Parquet with checksums."""
    import pyarrow
    import pyarrow.parquet as parquet

    folder = cache_folder()
    if folder is None:
        return pyarrow.Table.from_pylist(make())
    path = folder / "rows" / f"{key}.parquet"
    try:
        if path.is_file():
            return parquet.read_table(path, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        unusable(path, error)
    table = pyarrow.Table.from_pylist(make())
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink, write_page_checksum=True)
    write_cached(path, lambda made: made.write_bytes(sink.getvalue()))
    return table

"""Temporary files: named after their writer, so that what a dead one left can be told and removed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from mtlbench.files.disk import disk_error
from mtlbench.files.failpoints import reach
from mtlbench.files.owner import gone, space

ABANDONED_S = 86400.0
"""A temporary file whose writer cannot be checked from here is abandoned after this many seconds."""
_NAME = re.compile(r"\.(?P<host>.+)-(?P<space>\d*)-(?P<pid>\d+)-[0-9a-f]{32}\.tmp")
_log = logging.getLogger(__name__)


def temporary_path(folder: Path) -> Path:
    """A name in ``folder`` that no other process uses."""
    # The final name is left out: with it, long names would be too long for the file system.
    return folder / f".{_host()}-{_space()}-{os.getpid()}-{uuid.uuid4().hex}.tmp"


@contextlib.contextmanager
def temporary(path: Path, data: bytes, *, durable: bool) -> Iterator[Path]:
    """A file with ``data`` beside ``path``, gone at the end; ``durable`` waits until it survives a power cut.

    Raises:
        DiskError: there is no room for it.
    """
    made = temporary_path(path.parent)
    try:
        reach("store.before_write")
        with made.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        yield made
    except OSError as error:
        raise disk_error(error, path, needed=len(data)) or error from error
    finally:
        made.unlink(missing_ok=True)


def sweep(folder: Path) -> int:
    """Remove the temporary files in ``folder`` whose writers are gone; gives how many those were."""
    removed = 0
    for path in folder.glob(".*.tmp"):
        if not _abandoned(path):
            continue
        with contextlib.suppress(OSError):
            path.unlink()
            removed += 1
    if removed:
        _log.info("removed %d temporary files that dead processes left in %s", removed, folder)
    return removed


def _abandoned(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    if match and (match["host"], match["space"]) == (_host(), _space()):
        return gone(int(match["pid"]))
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except FileNotFoundError:
        return False


def _host() -> str:
    return socket.gethostname()[:40]


def _space() -> str:
    return "".join(c for c in space() if c.isdigit())

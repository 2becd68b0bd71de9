"""Temporary files, and atomic writes through them.

They are named after their writer so that leftovers of dead processes can be found and removed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from mtlbench.errors import StoreError
from mtlbench.files.failpoints import reach
from mtlbench.files.owner import gone, space

ABANDONED_S = 86400.0
"""A temporary file whose writer cannot be checked from here is abandoned after this many seconds."""
_NAME = re.compile(r"\.(?P<host>.+)-(?P<space>\d*)-(?P<pid>\d+)-[0-9a-f]{32}\.tmp")
_log = logging.getLogger(__name__)


def temporary_path(folder: Path) -> Path:
    """A name in ``folder`` that no other process uses."""
    # The final name is not part of it: long names would exceed the limit of the file system.
    return folder / f".{_host()}-{_space()}-{os.getpid()}-{uuid.uuid4().hex}.tmp"


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path beside ``path`` to write a file or a folder to; it takes the place of ``path`` in one step at the end.

    Readers see the old content or the new one, never a part. After an error ``path`` is as it was and nothing is left.
    ``durable`` waits until the content and its name survive a power cut.
    """
    made = temporary_path(path.parent)
    try:
        yield made
        usual_permissions(made)
        if durable:
            for part in (made, *made.rglob("*")):
                sync(part)
        made.replace(path)
        if durable:
            sync(path.parent)
    finally:
        if made.is_dir():
            shutil.rmtree(made, ignore_errors=True)
        else:
            made.unlink(missing_ok=True)


def usual_permissions(path: Path) -> None:
    """Give a file, or those in a folder, the permissions of new ones.

    Safetensors makes its files readable by their owner only, and a run folder may be a group's.
    """
    for part in (path, *path.rglob("*")):
        mode = part.lstat().st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) == 0o600:
            part.chmod(0o666 & ~_umask())


def _umask() -> int:
    """The umask of this process; reading it by :func:`os.umask` would change it for other threads meanwhile."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0o077


@contextlib.contextmanager
def temporary(path: Path, data: bytes, *, durable: bool) -> Iterator[Path]:
    """A temporary file with ``data`` next to ``path``, removed at the end; ``durable`` syncs it to disk.

    Raises:
        DiskError: there is no room for it.
    """
    temporary_file = temporary_path(path.parent)
    try:
        reach("store.before_write")
        with temporary_file.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        yield temporary_file
    except OSError as error:
        raise disk_error(error, path, needed=len(data)) or error from error
    finally:
        temporary_file.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> int:
    """Remove the temporary files in ``folder`` whose writers are gone; returns their number."""
    removed = 0
    for path in folder.glob(".*.tmp"):
        if not _abandoned(path):
            continue
        with contextlib.suppress(OSError):
            path.unlink()
            removed += 1
    if removed:
        _log.info("removed %d temporary files of dead processes in %s", removed, folder)
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


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class DiskError(StoreError, OSError):
    """There is no room for a file; existing files are unchanged."""

    def __str__(self) -> str:
        return str(self.strerror)


def disk_error(error: BaseException, path: Path, *, needed: int) -> DiskError | None:
    """``error`` as a :class:`DiskError` if the disk is full, else ``None``; ``needed`` is the file size in bytes.

    Rust libraries such as safetensors give the errno only in their message.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := _OS_ERROR.search(str(error))):
        number = int(match[1])
    if number not in _FULL:
        return None
    if number != errno.EFBIG and _files_used_up(path.parent):
        return DiskError(
            number,
            f"No more files fit in {str(path.parent)!r}: the number of files (inodes) of its file system is used up, "
            "not its space. Remove files or raise the quota of files, then run the same command again: it does only "
            "what is missing.",
            str(path),
        )
    limit = " The size of a single file is limited too (ulimit -f)." if number == errno.EFBIG else ""
    if number == errno.EDQUOT:
        limit = " A quota of space or of the number of files (inodes) is used up."
    return DiskError(
        number,
        f"No room in {str(path.parent)!r}: {path.name} needs {needed:,} bytes and {_free(path.parent)} are free."
        f"{limit} Free space or raise the quota, then run the same command again: it does only what is missing.",
        str(path),
    )


def _files_used_up(folder: Path) -> bool:
    """Whether the file system of ``folder`` counts its files and has room for no further one."""
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):
        return False
    return status.f_files > 0 and min(status.f_favail, status.f_ffree) == 0


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"

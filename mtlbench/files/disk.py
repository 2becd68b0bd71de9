"""The error for a full disk: which file, how much it needs and how much is free."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

from mtlbench.errors import StoreError

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
    limit = " The size of a single file is limited too (ulimit -f)." if number == errno.EFBIG else ""
    return DiskError(
        number,
        f"No room in {str(path.parent)!r}: {path.name} needs {needed:,} bytes and {_free(path.parent)} are free."
        f"{limit} Free space or raise the quota, then run the same command again: it does only what is missing.",
        str(path),
    )


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"

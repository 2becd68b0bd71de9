"""A full disk in words: what was to be written, how much it needs and how much is free."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

from mtlbench.errors import StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class DiskError(StoreError, OSError):
    """There is no room for a file; nothing that was written before is lost."""

    def __str__(self) -> str:
        return str(self.strerror)


def disk_error(error: BaseException, path: Path, *, needed: int) -> DiskError | None:
    """``error`` as a full disk, if that is what it is; ``needed`` is the size in bytes of what goes to ``path``.

    Libraries in Rust, such as safetensors, say the system's error number only in their message.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := _OS_ERROR.search(str(error))):
        number = int(told[1])
    if number not in _FULL:
        return None
    limit = " The size of single files is limited too (ulimit -f)." if number == errno.EFBIG else ""
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

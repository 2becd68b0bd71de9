"""Atomic file writes and sealed JSON: JSON with a checksum, written once, the first writer wins."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from mtlbench.api.cell import canonical
from mtlbench.errors import StoreError
from mtlbench.files.failpoints import reach
from mtlbench.files.temporary import atomic_write, disk_error, sync, temporary

LARGEST = 64 * 2**20
"""Size limit in bytes; a larger file counts as damaged and is not read."""


class Damaged(Exception):
    """The content is not what was written."""


def seal(body: dict[str, Any]) -> bytes:
    """``body`` as JSON with its SHA-256.

    The envelope is the same for every schema, so that damage can be distinguished from a newer schema.
    """
    text = canonical(body).encode()  # once, as it is what takes the time: "body" sorts before "sha256"
    return b'{"body":' + text + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}'


def unseal(data: bytes) -> dict[str, Any]:
    """The inverse of :func:`seal`.

    Raises:
        Damaged: the bytes are truncated, changed or not sealed.
    """
    try:
        value = json.loads(data)
        body: dict[str, Any] = value["body"]
        checksum = value["sha256"]
        sealed = seal(body) if isinstance(body, dict) else b""
        if set(value) != {"body", "sha256"} or not sealed.endswith(f'"{checksum}"}}'.encode()):
            raise Damaged("the checksum does not match")
        if sealed != data:
            raise Damaged("the values match the checksum, but the bytes are not those written")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"not a sealed file: {error}") from error
    return body


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The body of a sealed file, or ``None`` when there is none.

    Raises:
        Damaged: the file is truncated, changed, not sealed or not a regular file.
        StoreError: it cannot be read, for example because of missing permissions.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # Reading a pipe would block for ever.
            raise Damaged("a directory, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > LARGEST:
            raise Damaged(f"larger than {LARGEST} bytes")
        return unseal(path.read_bytes())
    except FileNotFoundError:
        if path.is_symlink():
            raise Damaged("a link to nothing") from None
        return None
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror or error}. Repair its permissions or the disk."
        ) from error


def write_new(path: Path, data: bytes, *, durable: bool = True) -> bool:
    """Create ``path`` with ``data`` unless it exists; returns whether this call created it.

    The file appears whole or not at all. ``durable`` syncs it to disk.

    Raises:
        DiskError: there is no room for it.
    """
    with temporary(path, data, durable=durable) as temporary_file:
        reach("store.before_link")
        try:
            os.link(temporary_file, path)
        except FileExistsError:
            # On a network file system link() may succeed and still report an error.
            if temporary_file.stat().st_nlink != 2:
                return False
        if durable:
            sync(path.parent)
        reach("store.after_link")
    return True


def overwrite(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` to ``path`` atomically, replacing any existing file.

    Raises:
        DiskError: there is no room for it.
    """
    try:
        with atomic_write(path, durable=durable) as temporary_file:
            reach("store.before_write")
            temporary_file.write_bytes(data)
            reach("store.before_replace")
    except OSError as error:
        raise disk_error(error, path, needed=len(data)) or error from error


def file_sha256(path: Path) -> str | None:
    """SHA-256 of a file; ``None`` when there is none."""
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def folder_sha256(path: Path) -> str | None:
    """SHA-256 of the names and bytes of all files in a folder; ``None`` when there is no folder."""
    if not path.is_dir():
        return None
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as content:
            checksum = hashlib.file_digest(content, "sha256").hexdigest()
        total.update(f"{file.relative_to(path).as_posix()} {checksum}\n".encode())
    return total.hexdigest()

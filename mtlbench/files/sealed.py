"""Files that are either whole or not there: sealed JSON, written once, first writer wins."""

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
from mtlbench.files.temporary import temporary

LARGEST = 64 * 2**20
"""No sealed file is larger than this many bytes; a larger one is damaged and is not read."""


class Damaged(Exception):
    """The bytes are not what was written."""


def seal(body: dict[str, Any]) -> bytes:
    """``body`` as JSON with its SHA-256 next to it.

    The envelope stays the same for every schema, so that damage is told from a newer schema.
    """
    return canonical({"body": body, "sha256": _checksum(body)}).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The body that :func:`seal` was given.

    Raises:
        Damaged: the bytes are torn, changed or foreign.
    """
    try:
        value = json.loads(data)
        body, checksum = value["body"], value["sha256"]
        if set(value) != {"body", "sha256"} or not isinstance(body, dict) or checksum != _checksum(body):
            raise Damaged("the checksum does not match")
        if seal(body) != data:
            raise Damaged("the values are those written, but not the bytes")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"not a sealed file: {error}") from error
    return body


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The body of a sealed file, or ``None`` when there is none.

    Raises:
        Damaged: the file is torn, changed, foreign or not a file.
        StoreError: it cannot be read, such as for want of rights.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            # Reading a pipe would wait for ever.
            raise Damaged("a directory, not a file" if stat.S_ISDIR(found.st_mode) else "not a regular file")
        if found.st_size > LARGEST:
            raise Damaged(f"larger than {LARGEST} bytes")
        return unseal(path.read_bytes())
    except FileNotFoundError:
        if path.is_symlink():
            raise Damaged("a link to nothing") from None
        return None
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror or error}. Repair its access rights or the disk."
        ) from error


def write_new(path: Path, data: bytes, *, durable: bool = True) -> bool:
    """Publish ``data`` under ``path`` unless something is there already; says whether this call did.

    The file appears whole or not at all. ``durable`` waits until it survives a power cut.

    Raises:
        DiskError: there is no room for it.
    """
    with temporary(path, data, durable=durable) as made:
        reach("store.before_link")
        try:
            os.link(made, path)
        except FileExistsError:
            # A network file system may lose the answer of a link that it made.
            if made.stat().st_nlink != 2:
                return False
        if durable:
            _sync_folder(path.parent)
        reach("store.after_link")
    return True


def overwrite(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put ``data`` under ``path`` in one step, whatever was there.

    Raises:
        DiskError: there is no room for it.
    """
    with temporary(path, data, durable=durable) as made:
        reach("store.before_replace")
        made.replace(path)
        if durable:
            _sync_folder(path.parent)


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
    found = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as content:
            checksum = hashlib.file_digest(content, "sha256").hexdigest()
        found.update(f"{file.relative_to(path).as_posix()} {checksum}\n".encode())
    return found.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(body).encode()).hexdigest()

"""Files that are either whole or not there: sealed JSON, written once, first writer wins."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtlbench.api.cell import canonical

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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"not a sealed file: {error}") from error
    return body


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The body of a sealed file, or ``None`` when there is none.

    Raises:
        Damaged: the file is torn, changed, foreign or not a file.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise Damaged(f"larger than {LARGEST} bytes")
        return unseal(path.read_bytes())
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise Damaged("a directory, not a file") from error


def write_new(path: Path, data: bytes, *, durable: bool = True) -> bool:
    """Publish ``data`` under ``path`` unless something is there already; says whether this call did.

    The file appears whole or not at all. ``durable`` waits until it survives a power cut.
    """
    with _temporary(path, data, durable=durable) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # A network file system may lose the answer of a link that it made.
            if temporary.stat().st_nlink != 2:
                return False
        if durable:
            _sync_folder(path.parent)
    return True


def overwrite(path: Path, data: bytes) -> None:
    """Put ``data`` under ``path`` in one step, whatever was there."""
    with _temporary(path, data, durable=True) as temporary:
        temporary.replace(path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def _temporary(path: Path, data: bytes, *, durable: bool) -> Iterator[Path]:
    # The final name is left out: with it, long names would be too long for the file system.
    temporary = path.parent / f".{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(body).encode()).hexdigest()

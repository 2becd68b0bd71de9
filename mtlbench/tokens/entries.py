"""Entries of the token cache: arrays in a safetensors file, mapped and so shared by all processes that read them.

The header holds a checksum over all arrays. An entry whose checksum does not match is made again, by one process at a
time: others wait for it, and read what it made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mtlbench.data.cache import cache_folder, unusable, write_cached
from mtlbench.files.heartbeat import beat

Entry = dict[str, np.ndarray]
"""Arrays by name; read-only where they are mapped."""
WAIT_S = 900.0
"""Longest wait for another process that makes an entry; then it is made here too."""
_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_log = logging.getLogger(__name__)


def cached_entry(key: str, make: Callable[[], Entry]) -> tuple[Entry, bool]:
    """The entry ``key``, and whether ``make`` made it now: then it is cached, if the cache folder can be written."""
    folder = cache_folder()
    if folder is None:
        return make(), True
    path = folder / "tokens" / key[:2] / f"{key}.safetensors"
    if (known := _usable(path, log=True)) is not None:
        return known, False
    with _one_maker(folder / "locks" / key):
        if (known := _usable(path, log=False)) is not None:  # made while this process waited
            return known, False
        made = make()
        write_cached(path, lambda file: _write(file, made))
    mapped = _usable(path, log=False)
    return made if mapped is None else mapped, True


def _usable(path: Path, *, log: bool) -> Entry | None:
    try:
        return _mapped(path) if path.is_file() else None
    except Exception as error:  # any damage can be repaired by making the entry again
        if log:
            unusable(path, error)
        return None


@contextlib.contextmanager
def _one_maker(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock ``path``. The system releases it when its process ends in any way."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        yield  # nothing can be cached either, which the writer says
        return
    try:
        deadline = time.monotonic() + WAIT_S
        while not _locked(file) and time.monotonic() < deadline:
            beat()
            time.sleep(0.05)
        yield
        with contextlib.suppress(OSError):
            path.unlink()
    finally:
        os.close(file)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.debug("the cache folder has no locks (%s): several processes may make an entry", error)
    return True


def _write(path: Path, entry: Entry) -> None:
    header: dict[str, Any] = {"__metadata__": {"sha256": _checksum(entry)}}
    # Wide items first: every array stays aligned.
    names, end = sorted(entry, key=lambda name: (-entry[name].itemsize, name)), 0
    for name in names:
        array = entry[name]
        places = [end, end := end + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": places}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(entry[name]).data)


def _mapped(path: Path) -> Entry:
    """The arrays of a file, mapped.

    Raises:
        ValueError: the file is not whole, or the checksum does not match.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(mapped[:8], "little")
    header: dict[str, Any] = json.loads(mapped[8 : 8 + size])
    checksum = header.pop("__metadata__", {}).get("sha256")
    entry = {}
    for name, said in header.items():
        dtype, shape = _DTYPES[said["dtype"]], tuple(said["shape"])
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(mapped, dtype, count, 8 + size + said["data_offsets"][0]) if count else np.empty(0, dtype)
        entry[name] = flat.reshape(shape)
    if checksum != _checksum(entry):
        raise ValueError("its checksum does not match")
    return entry


def _checksum(entry: Entry) -> str:
    total = hashlib.sha256()
    for name in sorted(entry):
        array = np.ascontiguousarray(entry[name])
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.data)
    return total.hexdigest()

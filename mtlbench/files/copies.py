"""Work on values that are in memory already, shared out to copies of this process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

from mtlbench.errors import MtlbenchError
from mtlbench.files.owner import cpus

T = TypeVar("T")
R = TypeVar("R")
_MOST = 8
"""Copies; more gain little on what takes seconds."""
_BYTES = 2
"""Of the number of an item."""
_ROOM = 65536 // _BYTES
"""Numbers that a pipe holds while nobody reads it."""


@dataclass(frozen=True)
class _Raised:
    error: Exception


@contextmanager
def in_copies(
    work: Callable[[T], R], items: Sequence[T], *, copies: int | None = None
) -> Iterator[Callable[[], list[R]]]:
    """``work`` of every item, begun at once; what the context gives waits for the results, in the order of the items.

    A copy starts in milliseconds, holds all that is loaded here, and takes the next item whenever it is done with one:
    put the longest first. Results come back pickled. With one core or one item, and where copying a process is not
    safe or not allowed, the work is done here when its results are asked for. Leaving the context ends copies that
    still work.

    Args:
        copies: How many; by default one for each core that this process may use, and at most eight.

    Raises:
        ValueError: more than 32,768 items; give them in slices.
        MtlbenchError: a copy was killed. What ``work`` raises is raised here, for the first item it happens with.
    """
    count = min(len(items), min(cpus(), _MOST) if copies is None else copies)
    if count < 2 or sys.platform != "linux" or multiprocessing.current_process().daemon:
        yield lambda: [work(item) for item in items]
        return
    if len(items) > _ROOM:
        raise ValueError(f"{len(items)} items are more than {_ROOM}: give them in slices.")
    context = multiprocessing.get_context("fork")
    following, asked = os.pipe()  # a lock would stay held where its holder is killed
    os.write(asked, b"".join(at.to_bytes(_BYTES) for at in range(len(items))))
    os.close(asked)
    started: list[tuple[ForkProcess, Connection]] = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_copy, args=(work, items, following, theirs, ours), daemon=True)
            with warnings.catch_warnings():  # of the threads of libraries: a copy waits for none of them
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            started.append((process, ours))
        yield lambda: _in_order([_received(*one) for one in started])
    finally:
        os.close(following)
        for process, ours in started:
            ours.close()
            process.terminate()
            process.join()


def _copy(
    work: Callable[[Any], Any], items: Sequence[Any], following: int, out: Connection, reader: Connection
) -> None:
    """Work until no item is left, then tell everything at once: a copy must not wait for its reader before that."""
    reader.close()  # so that there is none left where the process that asked is killed
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    found: dict[int, Any] = {}
    while taken := os.read(following, _BYTES):
        at = int.from_bytes(taken)
        try:
            found[at] = work(items[at])
        except Exception as error:
            error.add_note(f"In a copy of the process:\n{traceback.format_exc()}")
            found[at] = _Raised(error)
    try:
        out.send(found)
    except ConnectionError:
        sys.exit(1)  # whoever asked is gone


def _received(process: ForkProcess, ours: Connection) -> dict[int, Any]:
    try:
        told: dict[int, Any] = ours.recv()
    except EOFError:
        process.join()
        raise MtlbenchError(
            f"A copy of this process ended before it was done (exit code {process.exitcode}; -9 is what the system "
            "sends where memory runs out). Run the same command again."
        ) from None
    return told


def _in_order(parts: Sequence[dict[int, Any]]) -> list[Any]:
    found = {at: result for part in parts for at, result in part.items()}
    results = [found[at] for at in sorted(found)]
    for result in results:
        if isinstance(result, _Raised):
            raise result.error
    return results

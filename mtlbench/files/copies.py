"""Parallel work on values already in memory, in forked copies of this process."""

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
"""Default limit on copies; more gain little on work that takes seconds."""
_BYTES = 2
"""Size of an item index in the pipe."""
_ROOM = 65536 // _BYTES
"""Indices that fit into a pipe before a write blocks."""


@dataclass(frozen=True)
class _Raised:
    error: Exception


@contextmanager
def in_copies(
    work: Callable[[T], R], items: Sequence[T], *, copies: int | None = None
) -> Iterator[Callable[[], list[R]]]:
    """Start ``work`` on every item; the yielded function waits for the results and returns them in item order.

    A copy starts in milliseconds, has everything that is loaded here, and takes the next item whenever it finishes one:
    put the longest items first. Results come back pickled. With one core or one item, and where forking is not safe or
    not allowed, the work is done in this process when its results are requested. Leaving the context ends copies that
    still run.

    Args:
        copies: Number of copies; by default one per core that this process may use, at most eight.

    Raises:
        ValueError: more than 32,768 items; split them.
        MtlbenchError: a copy was killed. An exception of ``work`` is raised here, that of the first such item.
    """
    count = min(len(items), min(cpus(), _MOST) if copies is None else copies)
    if count < 2 or sys.platform != "linux" or multiprocessing.current_process().daemon:
        yield lambda: [work(item) for item in items]
        return
    if len(items) > _ROOM:
        raise ValueError(f"{len(items)} items are more than {_ROOM}: pass them in slices.")
    context = multiprocessing.get_context("fork")
    # The indices of open items are in a pipe: a lock would stay held if its holder were killed.
    todo, write_end = os.pipe()
    os.write(write_end, b"".join(index.to_bytes(_BYTES) for index in range(len(items))))
    os.close(write_end)
    started: list[tuple[ForkProcess, Connection]] = []
    try:
        for _ in range(count):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_copy, args=(work, items, todo, writer, reader), daemon=True)
            with warnings.catch_warnings():  # about threads of libraries, which the copies do not use
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            writer.close()
            started.append((process, reader))
        yield lambda: _in_order([_received(*copy) for copy in started])
    finally:
        os.close(todo)
        for process, reader in started:
            reader.close()
            process.terminate()
            process.join()


def _copy(work: Callable[[Any], Any], items: Sequence[Any], todo: int, writer: Connection, reader: Connection) -> None:
    """Work until no item is left, then send all results at once, so that a copy never waits for its reader before."""
    reader.close()  # otherwise writing would not fail if the parent is killed
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    results: dict[int, Any] = {}
    while data := os.read(todo, _BYTES):
        index = int.from_bytes(data)
        try:
            results[index] = work(items[index])
        except Exception as error:
            error.add_note(f"In a copy of the process:\n{traceback.format_exc()}")
            results[index] = _Raised(error)
    try:
        writer.send(results)
    except ConnectionError:
        sys.exit(1)  # the parent is gone


def _received(process: ForkProcess, reader: Connection) -> dict[int, Any]:
    try:
        results: dict[int, Any] = reader.recv()
    except EOFError:
        process.join()
        raise MtlbenchError(
            f"A copy of this process ended too early (exit code {process.exitcode}; -9 means killed, usually because "
            "memory ran out). Run the same command again."
        ) from None
    return results


def _in_order(of_copies: Sequence[dict[int, Any]]) -> list[Any]:
    by_index = {index: result for results in of_copies for index, result in results.items()}
    results = [by_index[index] for index in sorted(by_index)]
    for result in results:
        if isinstance(result, _Raised):
            raise result.error
    return results

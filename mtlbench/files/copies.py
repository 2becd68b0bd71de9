"""Parallel work on values already in memory, in forked copies of this process."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from mtlbench.errors import MtlbenchError
from mtlbench.files.owner import cpus

T = TypeVar("T")
R = TypeVar("R")
_MOST = 8
"""Default limit on copies; more gain little on work that takes seconds."""
_PR_SET_PDEATHSIG = 1
"""Of ``prctl(2)``: the signal that a process gets when its parent ends."""
_job: tuple[Callable[[Any], Any], Sequence[Any]] | None = None
"""In a copy: the work and the items. They are inherited by the fork, not pickled."""


@contextmanager
def in_copies(
    work: Callable[[T], R], items: Sequence[T], *, copies: int | None = None
) -> Iterator[Callable[[], list[R]]]:
    """Start ``work`` on every item; the yielded function waits for the results and returns them in item order.

    A copy starts in milliseconds, has everything that is loaded here, and takes the next item whenever it finishes one:
    put the longest items first. Results come back pickled. With one core or one item, and where forking is not
    safe, the work is done in this process when its results are requested; so it is inside a copy. Copies that still run
    end when the context is left, and when this process ends, however that happens.

    Args:
        copies: Number of copies; by default one per core that this process may use, at most eight.

    Raises:
        MtlbenchError: a copy was killed. An exception of ``work`` is raised here, that of the first such item.
    """
    count = min(len(items), min(cpus(), _MOST) if copies is None else copies)
    if count < 2 or sys.platform != "linux" or _job is not None or multiprocessing.current_process().daemon:
        yield lambda: [work(item) for item in items]
        return
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context("fork"), initializer=_begin, initargs=(work, items, os.getpid())
    )
    futures: list[Future[R]] = []
    with warnings.catch_warnings(), suppress(BrokenProcessPool):  # a copy killed by now is reported with the results
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads of libraries, which the copies do not use
        for at in range(len(items)):
            futures.append(pool.submit(_work_on, at))
    started = list(pool._processes.values())  # kill_workers() of Python 3.14 is the public way
    try:
        yield lambda: _results(pool, futures, started, count=len(items))
    finally:
        for process in started:
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(work: Callable[[Any], Any], items: Sequence[Any], parent: int) -> None:
    global _job
    _job = (work, items)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def _work_on(at: int) -> Any:
    assert _job is not None
    work, items = _job
    return work(items[at])


def _results(pool: ProcessPoolExecutor, futures: Sequence[Future[R]], started: Sequence[Any], *, count: int) -> list[R]:
    try:
        results = [future.result() for future in futures]
        if len(results) < count:
            raise BrokenProcessPool
        return results
    except BrokenProcessPool:
        pool.shutdown(wait=True)  # it terminates the other copies
        codes = [process.exitcode for process in started if process.exitcode not in (0, -signal.SIGTERM)]
        code = codes[0] if codes else "unknown"
        raise MtlbenchError(
            f"A copy of this process ended too early (exit code {code}; -9 means killed, usually because memory "
            "ran out). Run the same command again."
        ) from None

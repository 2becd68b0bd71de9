"""Cells of test workers that are held inside their work until the test has seen what it waits for.

A worker's side calls :func:`wait_while_held` in the middle of a cell. The test names cells with :func:`hold` before they
start and lets them go with :func:`release`, or with :func:`held_until` where it waits for a whole run meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.store import RunFolder

NAME = "held"


def hold(folder: RunFolder, cells: Iterable[Cell]) -> None:
    """From now on these cells do not get past their middle, whichever worker runs them."""
    (folder.path / NAME).write_text(" ".join(cell.key for cell in cells))


def release(folder: RunFolder) -> None:
    """Let every cell go on."""
    (folder.path / NAME).unlink()


@contextmanager
def held_until(folder: RunFolder, cells: Iterable[Cell], holds: Callable[[], object]) -> Iterator[None]:
    """Hold the cells until ``holds()`` is true, in a thread beside what the block does.

    Raises:
        AssertionError: it never got true; the cells were let go nevertheless, so that the block ends.
    """
    hold(folder, cells)
    problems: list[AssertionError] = []

    def let_go() -> None:
        try:
            wait_for(holds)
        except AssertionError as error:
            problems.append(error)
        release(folder)

    thread = threading.Thread(target=let_go)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if problems:
        raise problems[0]


def wait_while_held(folder: RunFolder, cell: Cell) -> None:
    """In a worker: return once the test does not hold the cell."""
    while cell.key in _held(folder):
        time.sleep(0.01)


def _held(folder: RunFolder) -> list[str]:
    try:
        return (folder.path / NAME).read_text().split()
    except FileNotFoundError:
        return []

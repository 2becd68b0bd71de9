"""Requests that one command makes one after another, so that its workers stay for the next one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mtlbench.api.cell import Cell
from mtlbench.files.sealed import overwrite
from mtlbench.files.temporary import temporary_path


class Series:
    """The end of the command: it adds requests, and says that no more come.

    It is a file of request ids with the name of a temporary file: what a killed command leaves is swept like those.
    """

    def __init__(self, folder: Path) -> None:
        self._path = temporary_path(folder)
        self._requests: list[str] = []

    @property
    def name(self) -> str:
        """Tells workers which one to follow."""
        return self._path.name

    def add(self, request: str) -> None:
        """The next request.

        Raises:
            DiskError: there is no room for it.
        """
        self._requests.append(request)
        overwrite(self._path, json.dumps(self._requests).encode(), durable=False)

    def close(self) -> None:
        """No more requests come: workers end when all cells have records."""
        self._path.unlink(missing_ok=True)


class Queue:
    """The cells of a request, and of those that follow it in a series.

    Args:
        cells: Request id to its cells.
        folder: Where series are.
        request: The first request.
        series: Name of the series; ``None`` when no more requests come.
    """

    def __init__(
        self, cells: Callable[[str], Sequence[Cell]], folder: Path, request: str, *, series: str | None = None
    ) -> None:
        self._read = cells
        self._path = folder / series if series else None
        self._known = {request}
        self._seen: object = None
        self.cells: list[Cell] = list(cells(request))
        """Those known so far, each once."""
        self.open = series is not None
        """Whether more may come."""

    def refresh(self) -> list[Cell]:
        """Cells that came since the last call."""
        if self._path is None:
            return []
        try:
            found = self._path.stat()
            now = (found.st_ino, found.st_mtime_ns, found.st_size)
            if now == self._seen:
                return []
            # The file is replaced whole: what is read is at least as new as what was looked at.
            requests = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            self.open = False
            return []
        self._seen, self.open = now, True
        there = {cell.key for cell in self.cells}
        new: dict[str, Cell] = {}
        for request in requests:
            if request not in self._known:
                self._known.add(request)
                new |= {cell.key: cell for cell in self._read(request) if cell.key not in there}
        self.cells += new.values()
        return list(new.values())

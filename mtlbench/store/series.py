"""A series of requests by one command, whose workers keep running for the next request."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mtlbench.api.cell import Cell
from mtlbench.files.sealed import overwrite
from mtlbench.files.temporary import temporary_path


class Series:
    """The command's side of a series: it adds requests and closes the series.

    A series is a file of request ids. It is named like a temporary file, so that it is removed if the command dies.
    """

    def __init__(self, folder: Path) -> None:
        self._path = temporary_path(folder)
        self._requests: list[str] = []

    @property
    def name(self) -> str:
        """Identifies the series for workers."""
        return self._path.name

    def add(self, request: str) -> None:
        """Add the next request.

        Raises:
            DiskError: the disk is full.
        """
        self._requests.append(request)
        overwrite(self._path, json.dumps(self._requests).encode(), durable=False)

    def close(self) -> None:
        """Close the series: workers end when all cells have records."""
        self._path.unlink(missing_ok=True)


class Queue:
    """The cells of a request and of later requests in a series.

    Args:
        cells: Returns the cells of a request id.
        folder: Folder of the series files.
        request: The first request.
        series: Name of the series; ``None`` for a single request.
    """

    def __init__(
        self, cells: Callable[[str], Sequence[Cell]], folder: Path, request: str, *, series: str | None = None
    ) -> None:
        self._read = cells
        self._path = folder / series if series else None
        self._known = {request}
        self._seen: object = None
        self.cells: list[Cell] = list(cells(request))
        """The cells known so far, each once."""
        self.open = series is not None
        """Whether requests may still be added."""

    def refresh(self) -> list[Cell]:
        """The cells that were added since the last call."""
        if self._path is None:
            return []
        try:
            status = self._path.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if version == self._seen:
                return []
            # The file is replaced atomically: its content is at least as new as ``version``.
            requests = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            self.open = False
            return []
        self._seen, self.open = version, True
        known = {cell.key for cell in self.cells}
        new: dict[str, Cell] = {}
        for request in requests:
            if request not in self._known:
                self._known.add(request)
                new |= {cell.key: cell for cell in self._read(request) if cell.key not in known}
        self.cells += new.values()
        return list(new.values())

"""Requests on disk: options and the resulting cells, write-once, so that commands can share a run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell, digest
from mtlbench.errors import RequestError, StoreError
from mtlbench.files.redact import redacted
from mtlbench.files.sealed import Damaged, read_sealed, seal, write_new
from mtlbench.store.quarantine import Quarantine

SCHEMA = 1
"""Version of the request layout."""
SETTLED_NS = 2 * 10**9
"""A file written less than this long ago may be written again without another time stamp."""
_log = logging.getLogger(__name__)


class Requests:
    """The requests folder; a damaged file goes to ``quarantine`` when the request is written again."""

    def __init__(self, path: Path, *, quarantine: Quarantine) -> None:
        self.path = path
        self._quarantine = quarantine
        self._read: dict[Path, tuple[tuple[int, ...], dict[str, Any], list[Cell]]] = {}
        """Requests that were read and checked before, known again by time stamps, size and inode."""

    def put(self, options: Mapping[str, Any], cells: Sequence[Cell]) -> str:
        """Store a request unless it exists; returns its id, a digest of options and cells.

        Raises:
            RequestError: the request holds a secret, which would appear in cell names and reports.
            DiskError: the disk is full.
        """
        content = {"words": dict(options), "cells": [cell.to_json() for cell in cells]}
        if redacted(content) != content:
            raise RequestError(
                "The request holds what looks like a token or a password (it equals a secret of the environment, or is "
                "part of a URL). Take it out: tokens belong into environment variables such as HF_TOKEN."
            )
        request = digest(content)
        path = self._file(request)
        try:
            if read_sealed(path) is not None:
                return request
        except Damaged as error:
            self._quarantine.take(path, reason=str(error), check=read_sealed)
        created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_new(path, seal({"schema": SCHEMA, "id": request, **content, "created": created}))
        return request

    def get(self, request: str) -> dict[str, Any]:
        """One request: ``id``, ``words`` (its options), ``cells``, ``created``.

        Raises:
            StoreError: there is no such request, or it cannot be read.
        """
        path = self._file(request)
        try:
            body = read_sealed(path)
        except Damaged as error:
            raise StoreError(f"The request {path} is damaged ({error}). Start the same command again.") from error
        if body is None:
            raise StoreError(f"There is no request {request!r} in {str(self.path.parent)!r}.")
        schema = body.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise StoreError(f"{path} was written by a newer version. Upgrade mtlbench, or use another run folder.")
        if not {"schema", "id", "words", "cells", "created"} <= set(body) or body["id"] != request:
            raise StoreError(f"{path} is not a request, or not the one that its name says. Delete it.")
        return body

    def all(self) -> list[dict[str, Any]]:
        """Every readable request, oldest first; unreadable ones are logged, and listed by :meth:`problems`."""
        return [request for request, _ in self._readable()]

    def cells(self) -> list[list[Cell]]:
        """The cells of each request of :meth:`all`."""
        return [cells for _, cells in self._readable()]

    def _readable(self) -> list[tuple[dict[str, Any], list[Cell]]]:
        requests, problems = self._read_all()
        for problem in problems:
            _log.warning("%s", problem)
        return requests

    def problems(self) -> list[str]:
        """One sentence per unreadable request."""
        return self._read_all()[1]

    def _read_all(self) -> tuple[list[tuple[dict[str, Any], list[Cell]]], list[str]]:
        requests, problems = [], []
        for path in sorted(self.path.glob("[!.]*.json")):
            try:
                request, cells = self._get_once(path)
                # Of one second, the file that was written first.
                when = (str(request["created"]), path.stat().st_mtime_ns, str(request["id"]))
                requests.append((when, (request, cells)))
            except StoreError as error:
                problems.append(f"Left out: {error}")
        return [request for _, request in sorted(requests, key=lambda one: one[0])], problems

    def _get_once(self, path: Path) -> tuple[dict[str, Any], list[Cell]]:
        """A request and its cells, which one command asks for several times."""
        before = _stamp(path)
        known = self._read.get(path)
        if known is None or known[0] != before:
            request = self.get(path.stem)
            known = (before, request, cells_of(request))
            if before and time.time_ns() - max(before[:2]) > SETTLED_NS:
                self._read[path] = known
        return known[1], list(known[2])

    def _file(self, request: str) -> Path:
        return self.path / f"{request}.json"


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def cells_of(request: Mapping[str, Any]) -> list[Cell]:
    """The cells of a request, in request order.

    Raises:
        StoreError: another version of mtlbench wrote them.
    """
    try:
        return [printable(Cell.from_json(cell)) for cell in request["cells"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"Request {request['id']} was written by another version of mtlbench: {error}.") from error


def printable(cell: Cell) -> Cell:
    """The cell, unchanged.

    Raises:
        ValueError: a name in it contains control characters.
    """
    for name in (cell.method, cell.model, *cell.tasks, *cell.settings, *map(str, cell.settings.values())):
        if not name.isprintable():
            raise ValueError(f"the name {name!r} holds control characters")
    return cell

"""Requests on disk: what was asked for and the cells it means, write-once, so that commands can share a run folder."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell, digest
from mtlbench.errors import StoreError
from mtlbench.store.files import Damaged, read_sealed, seal, write_new

SCHEMA = 1
"""Version of the request layout."""
_log = logging.getLogger(__name__)


class Requests:
    """The requests folder."""

    def __init__(self, path: Path, *, quarantine: Path) -> None:
        self.path = path
        self._quarantine = quarantine

    def put(self, words: Mapping[str, Any], cells: Sequence[Cell]) -> str:
        """Keep a request unless it is there; gives its id, a digest of words and cells."""
        wanted = {"words": dict(words), "cells": [cell.to_json() for cell in cells]}
        request = digest(wanted)
        path = self._file(request)
        try:
            if read_sealed(path) is not None:
                return request
        except Damaged as error:
            target = self._quarantine / f"{path.stem}.{uuid.uuid4().hex[:8]}.json"
            path.rename(target)
            _log.warning("%s was damaged (%s): moved to %s and written again", path, error, target)
        created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_new(path, seal({"schema": SCHEMA, "id": request, **wanted, "created": created}))
        return request

    def get(self, request: str) -> dict[str, Any]:
        """One request: ``id``, ``words``, ``cells``, ``created``.

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
        if body["schema"] > SCHEMA:
            raise StoreError(f"{path} was written by a newer version. Upgrade mtlbench, or use another run folder.")
        return body

    def all(self) -> list[dict[str, Any]]:
        """Every readable request, oldest first; unreadable ones are logged."""
        found = []
        for path in self.path.glob("[!.]*.json"):
            try:
                found.append(self.get(path.stem))
            except StoreError as error:
                _log.warning("left out: %s", error)
        return sorted(found, key=lambda request: (str(request["created"]), str(request["id"])))

    def _file(self, request: str) -> Path:
        return self.path / f"{request}.json"


def cells_of(request: Mapping[str, Any]) -> list[Cell]:
    """The cells of a request, in the order asked for.

    Raises:
        StoreError: another version of mtlbench wrote them.
    """
    try:
        return [Cell.from_json(cell) for cell in request["cells"]]
    except (ValueError, TypeError) as error:
        raise StoreError(f"Request {request['id']} was written by another version of mtlbench: {error}.") from error

"""Records on disk: write-once, checked on every read, never trusted when damaged."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import uuid
from collections.abc import Iterable
from pathlib import Path

from mtlbench.api.cell import digest
from mtlbench.api.record import SCHEMA, Record
from mtlbench.errors import StoreError
from mtlbench.store.files import Damaged, read_sealed, seal, write_new

_RETIRED = re.compile(r"[0-9a-f]+\.failed-\d+\.json")
_log = logging.getLogger(__name__)


class Records:
    """The records folder; damaged files are moved to ``quarantine``."""

    def __init__(self, path: Path, *, quarantine: Path) -> None:
        self.path = path
        self._quarantine = quarantine

    def get(self, key: str) -> Record | None:
        """The record of a cell, or ``None``; a damaged one is moved away and counts as none.

        Raises:
            StoreError: the record was written by a newer version.
        """
        path = self._file(key)
        try:
            return _read(path, key)
        except Damaged as error:
            self._move_away(path, key=key, reason=str(error))
            return None

    def has(self, key: str) -> bool:
        """Whether there is a file, unchecked."""
        return self._file(key).exists()

    def all(self) -> dict[str, Record]:
        """Cell key to record. One bad file is logged and left out; it never hides the others."""
        found: dict[str, Record] = {}
        try:
            paths = sorted(self.path.iterdir())
        except FileNotFoundError:
            return {}
        for path in paths:
            if path.name.startswith(".") or path.suffix != ".json" or _RETIRED.fullmatch(path.name):
                continue
            key = path.stem
            try:
                record = self.get(key)
            except (StoreError, OSError) as error:
                _log.warning("left out: %s", error)
                continue
            if record is not None:
                found[key] = record
        return found

    def add(self, record: Record) -> bool:
        """Write a record unless its cell has one; says whether this call did."""
        return write_new(self._file(record.key), seal(record.to_json()))

    def retire_failed(self, keys: Iterable[str]) -> list[str]:
        """Rename failed records so that their cells run again; gives the keys of those."""
        retired: list[str] = []
        for key in keys:
            record = self.get(key)
            if record is None or record.status != "failed":
                continue
            number = 1
            while (target := self.path / f"{key}.failed-{number}.json").exists():
                number += 1
            with contextlib.suppress(FileNotFoundError):
                self._file(key).rename(target)
                retired.append(key)
        return retired

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.json"

    def _move_away(self, path: Path, *, key: str, reason: str) -> None:
        target = self._quarantine / f"{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}"
        try:
            path.rename(target)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("%s is damaged (%s) and cannot be moved to %s: %s", path, reason, target, error)
            return
        # Another process may have replaced the damaged file between the read and the rename: put a good one back.
        try:
            _read(target, key)
        except Damaged:
            _log.warning("%s was damaged (%s): moved to %s; its cell counts as not run", path, reason, target)
            return
        except (StoreError, OSError):
            pass
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(target, path)
        target.unlink(missing_ok=True)


def _read(path: Path, key: str) -> Record | None:
    body = read_sealed(path)
    if body is None:
        return None
    schema = body.get("schema")
    if not isinstance(schema, int):
        raise Damaged("no record")
    if schema > SCHEMA:
        raise StoreError(
            f"{path} has record schema {schema}, this version of mtlbench reads up to {SCHEMA}. "
            "Upgrade mtlbench, or use another run folder."
        )
    # The key is taken from the bytes, not from a rebuilt cell, whose later defaults may differ.
    if body.get("key") != key or digest(body.get("cell"), length=24) != key:
        raise Damaged("the record of another cell")
    try:
        return Record.from_json(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is intact but was written by another version of mtlbench ({error}). "
            "Upgrade mtlbench, or use another run folder."
        ) from error

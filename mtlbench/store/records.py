"""Records on disk: write-once, checked on every read, never trusted when damaged."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtlbench.api.cell import digest
from mtlbench.api.record import SCHEMA, Record
from mtlbench.errors import StoreError
from mtlbench.files.redact import redacted
from mtlbench.files.sealed import Damaged, overwrite, read_sealed, seal, write_new
from mtlbench.store.quarantine import Quarantine
from mtlbench.store.requests import printable

_RETIRED = re.compile(r"[0-9a-f]+\.failed-\d+\.json")
_log = logging.getLogger(__name__)


class Records:
    """The records folder; damaged files go to ``quarantine``, second results that disagree to ``conflicts``.

    ``published`` holds the checksum of each record as it was published here, so that one that is deleted or replaced
    by hand is noticed.
    """

    def __init__(self, path: Path, *, quarantine: Quarantine, conflicts: Path, published: Path) -> None:
        self.path = path
        self.quarantine = quarantine
        self.conflicts = conflicts
        self.published = published

    def get(self, key: str) -> Record | None:
        """The record of a cell, or ``None``; a damaged one is moved away and counts as none.

        Raises:
            StoreError: the record was written by a newer version, or cannot be read.
        """
        path = self.file(key)
        try:
            return read_record(path, key)
        except Damaged as error:
            self._keep_copy(path, key)
            self.quarantine.take(path, reason=str(error), check=lambda moved: read_record(moved, key))
            return None

    def has(self, key: str) -> bool:
        """Whether there is a file, unchecked."""
        return self.file(key).exists()

    def all(self) -> dict[str, Record]:
        """Cell key to record. One bad file is logged and left out; it never hides the others."""
        found: dict[str, Record] = {}
        for key in self.names():
            try:
                record = self.get(key)
            except StoreError as error:
                _log.warning("left out: %s", error)
                continue
            if record is not None:
                found[key] = record
        return found

    def add(self, record: Record) -> bool:
        """Write a record unless its cell has one; says whether this call did. One that disagrees is kept aside.

        Secrets of the environment are blanked in what the record tells beside its cell.
        """
        body = redacted_body(record.to_json())
        data = seal(body)
        if not write_new(self.file(record.key), data):
            self.compare(record)
            return False
        with contextlib.suppress(OSError):
            self.published.mkdir(exist_ok=True)
            overwrite(self.published / record.key, hashlib.sha256(data).hexdigest().encode(), durable=False)
        return True

    def compare(self, record: Record) -> None:
        """Keep ``record`` aside if its cell has another one with other scores."""
        with contextlib.suppress(StoreError):
            kept = self.get(record.key)
            if kept is not None and disagree(kept, record):
                self._conflict(record)

    def retire(self, key: str) -> bool:
        """Rename a failed record so that its cell runs again; the caller holds the cell's claim."""
        record = self.get(key)
        if record is None or record.status != "failed":
            return False
        number = 1
        while (target := self.path / f"{key}.failed-{number}.json").exists():
            number += 1
        with contextlib.suppress(FileNotFoundError):
            # First, so that a process that dies in between leaves no mark of a record that nobody deleted.
            (self.published / key).unlink()
        self.file(key).rename(target)
        return True

    def settle(self) -> None:
        """Finish moves to quarantine that a process that died began."""
        self.quarantine.settle(self.path, check=lambda path, place: read_record(path, place.stem))

    def names(self) -> Iterator[str]:
        """Names of the files that should be records."""
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self.path.iterdir()):
                if path.name[0] != "." and path.suffix == ".json" and not _RETIRED.fullmatch(path.name):
                    yield path.stem

    def file(self, key: str) -> Path:
        """Where the record of a cell is."""
        return self.path / f"{key}.json"

    def _keep_copy(self, path: Path, key: str) -> None:
        """A whole record under a wrong name may be a second result of its cell: keep it if it disagrees."""
        with contextlib.suppress(Damaged, StoreError):
            body = read_sealed(path)
            own = str((body or {}).get("key"))
            record = read_record(path, own) if own != key else None
            if record is not None:
                self.compare(record)

    def _conflict(self, record: Record) -> None:
        body = redacted_body(record.to_json())
        path = self.conflicts / f"{record.key}.{digest(body, length=8)}.json"
        self.conflicts.mkdir(exist_ok=True)
        if write_new(path, seal(body)):
            _log.error("%s: a second result of this cell disagrees with the first; kept in %s", record.key, path)


def disagree(one: Record, other: Record) -> bool:
    """Whether two records of one cell have both scores and those differ."""
    scores = [{task: asdict(score) for task, score in record.scores.items()} for record in (one, other)]
    return one.status == other.status == "ok" and scores[0] != scores[1]


def redacted_body(body: dict[str, Any]) -> dict[str, Any]:
    """The record without secrets; what names the cell stays, since its key is computed from that."""
    return {name: value if name in ("key", "cell") else redacted(value) for name, value in body.items()}


def read_record(path: Path, key: str) -> Record | None:
    """The record of cell ``key`` in ``path``, checked; ``None`` when there is no file.

    Raises:
        Damaged: it is not what was written, or the record of another cell.
        StoreError: it was written by a newer version, or cannot be read.
    """
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
    if body.get("key") != key:
        raise Damaged("the record of another cell")
    other = "Read it with the version that wrote it, or use another run folder."
    try:
        record = Record.from_json(body)
        printable(record.cell)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is intact but was written by another version of mtlbench ({error}). {other}"
        ) from error
    if record.key != key:
        raise StoreError(f"{path} is intact but names its cell as another version of mtlbench did. {other}")
    return record

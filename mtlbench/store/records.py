"""Records on disk: write-once, and checked on every read."""

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
from mtlbench.store.outputs import listed
from mtlbench.store.quarantine import Quarantine
from mtlbench.store.requests import printable

_RETIRED = re.compile(r"[0-9a-f]+\.(failed|again)-\d+\.json")
_log = logging.getLogger(__name__)


class Records:
    """The records folder; damaged files go to ``quarantine``, second results that disagree to ``conflicts``.

    ``published`` holds the checksum of each published record, which shows whether one was deleted or replaced by hand.
    """

    def __init__(self, path: Path, *, quarantine: Quarantine, conflicts: Path, published: Path) -> None:
        self.path = path
        self.quarantine = quarantine
        self.conflicts = conflicts
        self.published = published

    def get(self, key: str) -> Record | None:
        """The record of a cell, or ``None``; a damaged one is moved to quarantine and counts as missing.

        Raises:
            StoreError: the record was written by a newer version, or cannot be read.
        """
        path = self.file(key)
        try:
            return read_record(path, key)
        except Damaged as error:
            self._compare_misnamed(path, key)
            self.quarantine.take(path, reason=str(error), check=lambda moved: read_record(moved, key))
            return None

    def has(self, key: str) -> bool:
        """Whether the file exists, without reading it."""
        return self.file(key).exists()

    def all(self) -> dict[str, Record]:
        """Cell key to record. An unreadable file is logged and skipped."""
        records: dict[str, Record] = {}
        for key in self.names():
            try:
                record = self.get(key)
            except StoreError as error:
                _log.warning("skipped: %s", error)
                continue
            if record is not None:
                records[key] = record
        return records

    def add(self, record: Record) -> bool:
        """Write a record unless its cell has one; returns whether it was written. One that differs goes to conflicts.

        Secrets are redacted everywhere except in the cell.
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
        """Write ``record`` to ``conflicts`` if its cell has another record with other scores."""
        with contextlib.suppress(StoreError):
            published = self.get(record.key)
            if published is not None and disagree(published, record):
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
            # First, so that dying in between does not look like a record deleted by hand.
            (self.published / key).unlink()
        self.file(key).rename(target)
        return True

    def settle(self) -> None:
        """Finish moves to quarantine that a process began before it died."""
        self.quarantine.settle(self.path, check=lambda path, original: read_record(path, original.stem))

    def listed(self) -> frozenset[str]:
        """Names of the record files, as :meth:`names`, from one listing."""
        return frozenset(name[:-5] for name in listed(self.path) if name.endswith(".json"))

    def names(self) -> Iterator[str]:
        """Keys of the cells with a record file."""
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self.path.iterdir()):
                if path.name[0] != "." and path.suffix == ".json" and not _RETIRED.fullmatch(path.name):
                    yield path.stem

    def file(self, key: str) -> Path:
        """File of a cell's record."""
        return self.path / f"{key}.json"

    def _compare_misnamed(self, path: Path, key: str) -> None:
        """An intact record under the wrong file name may be a second result of its cell: compare it."""
        with contextlib.suppress(Damaged, StoreError):
            body = read_sealed(path)
            actual = str((body or {}).get("key"))
            record = read_record(path, actual) if actual != key else None
            if record is not None:
                self.compare(record)

    def _conflict(self, record: Record) -> None:
        body = redacted_body(record.to_json())
        path = self.conflicts / f"{record.key}.{digest(body, length=8)}.json"
        self.conflicts.mkdir(exist_ok=True)
        if write_new(path, seal(body)):
            _log.error("%s: a second result of this cell disagrees with the first; written to %s", record.key, path)


def disagree(one: Record, other: Record) -> bool:
    """Whether two records of one cell are both ok but have different scores."""
    scores = [{task: asdict(score) for task, score in record.scores.items()} for record in (one, other)]
    return one.status == other.status == "ok" and scores[0] != scores[1]


def redacted_body(body: dict[str, Any]) -> dict[str, Any]:
    """The record without secrets; the cell is unchanged, since the key is computed from it."""
    return {name: value if name in ("key", "cell") else redacted(value) for name, value in body.items()}


def read_record(path: Path, key: str) -> Record | None:
    """The record of cell ``key`` in ``path``, checked; ``None`` when there is no file.

    Raises:
        Damaged: the content is not what was written, or the record of another cell.
        StoreError: it was written by a newer version, or cannot be read.
    """
    body = read_sealed(path)
    if body is None:
        return None
    schema = body.get("schema")
    if not isinstance(schema, int):
        raise Damaged("not a record")
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

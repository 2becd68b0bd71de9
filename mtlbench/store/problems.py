"""Problems of a run folder, as sentences: damaged, deleted, replaced and disagreeing results."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mtlbench.api.record import Record
from mtlbench.errors import StoreError
from mtlbench.files.sealed import Damaged
from mtlbench.store.records import Records, read_record

AGAIN = "run the same command again"


@dataclass
class Problems:
    """Checks every file; ``names`` maps cell keys to display names. Records that were already read may be passed."""

    records: Records
    names: Mapping[str, str]
    _readable: dict[str, Record] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """One sentence per problem."""
        unreadable = [*self._unreadable()]  # first, as it fills the readable records
        return [*unreadable, *self._damaged(), *self._conflicting(), *self._changed()]

    def _unreadable(self) -> Iterator[str]:
        for key in self.records.names():
            if key in self._readable:
                continue
            try:
                record = self.records.get(key)
            except StoreError as error:
                yield f"Left out: {error}"
                continue
            if record is not None:
                self._readable[key] = record

    def _damaged(self) -> Iterator[str]:
        others = 0
        for entry in self.records.quarantine.entries():
            folder, _, file = entry.origin.rpartition("/")
            key = Path(file).stem
            if folder == "samples" and key in self._readable:
                yield (
                    f"The predictions of {self._name(key)} were damaged ({entry.reason}) and moved to "
                    f"quarantine/{entry.path.name}: its scores are valid, but its answers are not resampled. To "
                    f"restore them, delete records/{key}.json and {AGAIN}."
                )
                continue
            if folder not in ("", "records") or key in self._readable:
                others += 1
                continue
            yield (
                f"The record of {self._name(key)} was damaged ({entry.reason}) and moved to "
                f"quarantine/{entry.path.name}: {AGAIN}."
            )
        if others:
            yield f"Damaged files in quarantine/: {others}. No result is missing."

    def _conflicting(self) -> Iterator[str]:
        for path in sorted(self.records.conflicts.glob("[!.]*.json")):
            key = path.name.partition(".")[0]
            try:
                other = read_record(path, key)
            except (Damaged, StoreError) as error:
                yield f"conflicts/{path.name} cannot be read: {error}"
                continue
            if other is None or key not in self._readable:
                continue
            yield (
                f"Two results of {self._name(key)} disagree: {_scores(self._readable[key])} in records/{key}.json, "
                f"which the tables show, and {_scores(other)} in conflicts/{path.name}. Keep the first by deleting the "
                f"second, or delete both and {AGAIN}."
            )

    def _changed(self) -> Iterator[str]:
        damaged = {Path(entry.origin).stem for entry in self.records.quarantine.entries()}
        for path in sorted(self.records.published.glob("[!.]*")):
            key = path.name
            record = self.records.file(key)
            if key not in self._readable:
                if key not in damaged and not record.exists():
                    yield f"The record of {self._name(key)} was deleted by hand: {AGAIN}."
                continue
            with contextlib.suppress(OSError):
                checksum = path.read_text()
                if checksum and hashlib.sha256(record.read_bytes()).hexdigest() != checksum:
                    yield (
                        f"The record of {self._name(key)} is not the one that was published here: it was replaced by "
                        f"hand. If that was not intended, delete it and {AGAIN}."
                    )

    def _name(self, key: str) -> str:
        return f"{self.names[key]} ({key})" if key in self.names else f"cell {key}"


def _scores(record: Record) -> str:
    return ", ".join(f"{task} {score.score:.6g}" for task, score in sorted(record.scores.items())) or "no score"

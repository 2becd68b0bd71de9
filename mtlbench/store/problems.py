"""What a reader of a run folder should know: damaged, deleted, replaced and disagreeing results, in sentences."""

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
    """Looks at every file; ``names`` is how to call a cell, by key. Records that were read already may be given."""

    records: Records
    names: Mapping[str, str]
    _good: dict[str, Record] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """One for each thing to know; empty when all is well."""
        found = [*self._unreadable()]
        return [*found, *self._damaged(), *self._conflicting(), *self._changed()]

    def _unreadable(self) -> Iterator[str]:
        for key in self.records.names():
            if key in self._good:
                continue
            try:
                record = self.records.get(key)
            except StoreError as error:
                yield f"Left out: {error}"
                continue
            if record is not None:
                self._good[key] = record

    def _damaged(self) -> Iterator[str]:
        settled = 0
        for entry in self.records.quarantine.entries():
            folder, _, file = entry.origin.rpartition("/")
            key = Path(file).stem
            if folder == "samples" and key in self._good:
                yield (
                    f"The predictions of {self._name(key)} were damaged ({entry.reason}) and lie in "
                    f"quarantine/{entry.path.name}: its scores stand, but nothing is resampled from its answers. To "
                    f"have them again, delete records/{key}.json and {AGAIN}."
                )
                continue
            if folder not in ("", "records") or key in self._good:
                settled += 1
                continue
            yield (
                f"The record of {self._name(key)} was damaged ({entry.reason}) and lies in "
                f"quarantine/{entry.path.name}: {AGAIN}."
            )
        if settled:
            yield f"Damaged files in quarantine/: {settled}. No result is missing for them."

    def _conflicting(self) -> Iterator[str]:
        for path in sorted(self.records.conflicts.glob("[!.]*.json")):
            key = path.name.partition(".")[0]
            try:
                other = read_record(path, key)
            except (Damaged, StoreError) as error:
                yield f"conflicts/{path.name} cannot be read: {error}"
                continue
            if other is None or key not in self._good:
                continue
            yield (
                f"Two results of {self._name(key)} disagree: {_told(self._good[key])} in records/{key}.json, which the "
                f"tables show, and {_told(other)} in conflicts/{path.name}. Keep the first by deleting the second, or "
                f"delete both and {AGAIN}."
            )

    def _changed(self) -> Iterator[str]:
        damaged = {Path(entry.origin).stem for entry in self.records.quarantine.entries()}
        for path in sorted(self.records.published.glob("[!.]*")):
            key = path.name
            record = self.records.file(key)
            if key not in self._good:
                if key not in damaged and not record.exists():
                    yield f"The record of {self._name(key)} was deleted by hand: {AGAIN}."
                continue
            with contextlib.suppress(OSError):
                told = path.read_text()
                if told and hashlib.sha256(record.read_bytes()).hexdigest() != told:
                    yield (
                        f"The record of {self._name(key)} is not the one that was published here: it was replaced by "
                        f"hand. If that was not meant, delete it and {AGAIN}."
                    )

    def _name(self, key: str) -> str:
        return f"{self.names[key]} ({key})" if key in self.names else f"cell {key}"


def _told(record: Record) -> str:
    return ", ".join(f"{task} {score.score:.6g}" for task, score in sorted(record.scores.items())) or "no score"

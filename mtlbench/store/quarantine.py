"""Quarantine: damaged files are moved here, each with the reason, so that they are not read but not lost either."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mtlbench.files.failpoints import reach
from mtlbench.files.sealed import Damaged, overwrite

_log = logging.getLogger(__name__)
RECORDS = "records"
"""The folder in which a damaged file means that the cell has no result."""


@dataclass(frozen=True, kw_only=True)
class QuarantinedFile:
    """One file in quarantine."""

    path: Path
    origin: str
    """Original path, relative to the run folder."""
    reason: str
    time: str


class Quarantine:
    """The quarantine folder. Each file has a ``<name>.reason`` with its origin, the reason and the time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self, path: Path, *, reason: str, check: Callable[[Path], object]) -> bool:
        """Move ``path`` here unless ``check`` accepts it; returns whether it was moved.

        ``check`` raises :class:`Damaged` for a damaged file.
        """
        target = self.path / f"{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}"
        try:
            path.rename(target)
        except FileNotFoundError:
            return False
        except OSError as error:
            _log.warning("%s is damaged (%s) and cannot be moved to %s: %s", path, reason, target, error)
            return False
        reach("store.quarantined")
        # Another process may have replaced the damaged file between the read and the rename: put a good one back.
        try:
            check(target)
        except Damaged:
            self._explain(target, origin=path, reason=reason)
            return True
        except Exception as error:
            _log.warning("%s is put back: %s", path, error)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(target, path)
        target.unlink(missing_ok=True)
        return False

    def settle(self, origin: Path, *, check: Callable[[Path, Path], object]) -> None:
        """Finish moves that a process began before it died: files of the folder ``origin`` without a reason.

        An intact one is put back. ``check`` gets the file and its original path.
        """
        for path in self._files():
            if _reason_file(path).exists():
                continue
            original = origin / f"{path.stem.rpartition('.')[0]}{path.suffix}"
            try:
                check(path, original)
            except Damaged as error:
                self._explain(path, origin=original, reason=str(error))
                continue
            except Exception as error:
                _log.warning("%s stays in quarantine: %s", path, error)
                continue
            with contextlib.suppress(OSError):
                os.link(path, original)
            path.unlink(missing_ok=True)

    def entries(self) -> list[QuarantinedFile]:
        """The quarantined files, by name."""
        entries = []
        for path in self._files():
            try:
                body = json.loads(_reason_file(path).read_bytes())
                entries.append(
                    QuarantinedFile(path=path, origin=str(body["from"]), reason=str(body["reason"]), time=body["time"])
                )
            except (OSError, ValueError, KeyError, TypeError):
                entries.append(QuarantinedFile(path=path, origin=path.name, reason="reason unknown", time=""))
        return entries

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            yield from sorted(p for p in self.path.iterdir() if p.name[0] != "." and p.suffix != ".reason")

    def _explain(self, path: Path, *, origin: Path, reason: str) -> None:
        where = f"{origin.parent.name}/{origin.name}"
        body = {"from": where, "reason": reason, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        lost = "; its cell counts as not run" if origin.parent.name == RECORDS else ""
        _log.warning("%s was damaged (%s): moved to %s%s", origin, reason, path, lost)
        try:
            overwrite(_reason_file(path), json.dumps(body).encode(), durable=False)
        except OSError as error:
            _log.warning("cannot write the reason: %s", error)


def _reason_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.reason")

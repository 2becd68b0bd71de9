"""Quarantine: where damaged files go, each with the reason, so that nothing is read from them and nothing is lost."""

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
"""The folder whose damaged files take the result of a cell with them; others only take what lies beside it."""


@dataclass(frozen=True, kw_only=True)
class QuarantinedFile:
    """One file in quarantine."""

    path: Path
    origin: str
    """Where it was, relative to the run folder."""
    reason: str
    time: str


class Quarantine:
    """The quarantine folder. Beside each file lies ``<name>.reason``: where it was, why it went, and when."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self, path: Path, *, reason: str, check: Callable[[Path], object]) -> bool:
        """Move ``path`` here unless ``check`` finds that it is good by now; says whether it went.

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
        """Finish what a process that died in :meth:`take` left: files of the folder ``origin`` without a reason.

        A good one is put back. ``check`` gets the file and its place in ``origin``.
        """
        for path in self._files():
            if _reason_file(path).exists():
                continue
            place = origin / f"{path.stem.rpartition('.')[0]}{path.suffix}"
            try:
                check(path, place)
            except Damaged as error:
                self._explain(path, origin=place, reason=str(error))
                continue
            except Exception as error:
                _log.warning("%s is left where it is: %s", path, error)
                continue
            with contextlib.suppress(OSError):
                os.link(path, place)
            path.unlink(missing_ok=True)

    def entries(self) -> list[QuarantinedFile]:
        """What is here, by name."""
        found = []
        for path in self._files():
            try:
                told = json.loads(_reason_file(path).read_bytes())
                found.append(
                    QuarantinedFile(path=path, origin=str(told["from"]), reason=str(told["reason"]), time=told["time"])
                )
            except (OSError, ValueError, KeyError, TypeError):
                found.append(QuarantinedFile(path=path, origin=path.name, reason="no reason was kept", time=""))
        return found

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            yield from sorted(p for p in self.path.iterdir() if p.name[0] != "." and p.suffix != ".reason")

    def _explain(self, path: Path, *, origin: Path, reason: str) -> None:
        where = f"{origin.parent.name}/{origin.name}"
        told = {"from": where, "reason": reason, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        lost = "; its cell counts as not run" if origin.parent.name == RECORDS else ""
        _log.warning("%s was damaged (%s): moved to %s%s", origin, reason, path, lost)
        try:
            overwrite(_reason_file(path), json.dumps(told).encode(), durable=False)
        except OSError as error:
            _log.warning("the reason cannot be kept: %s", error)


def _reason_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.reason")

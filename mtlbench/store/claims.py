"""Claims: which process runs which cell. Attempts are numbered files that are only ever added, which avoids races.

Attempt ``n`` of a cell is ``claims/<key>.<n>.json``, created by the one process that wins the name. A claim is broken
by creating attempt ``n + 1``, which is allowed only when attempt ``n`` is certainly over. Attempts below the highest
are those whose process died.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtlbench.files.owner import Owner
from mtlbench.files.sealed import write_new
from mtlbench.files.temporary import atomic_write, temporary_path

LEASE_S = 600.0
"""A claim of a process that cannot be checked from here expires after this many seconds without a heartbeat."""
BEAT_S = 15.0
"""Seconds between heartbeats of the owner."""
CONFIRM_BEATS = 4
"""An expired claim is broken only after this process has observed this many further missed heartbeats: a clock that
jumps makes every claim look expired, and file attributes on a network file system may be stale."""

_GIVEN_BACK = ".given-back.json"
_NAME = re.compile(r"([0-9a-f]+)\.(\d+)\.json")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to run one cell and publish its record."""

    key: str
    attempt: int
    token: str
    owner: Owner
    time: str
    deaths: int = 0
    """Earlier attempts whose process died."""


class Claims:
    """The claims folder. ``lease_s`` and ``beat_s`` are seconds."""

    def __init__(self, path: Path, *, lease_s: float = LEASE_S, beat_s: float = BEAT_S) -> None:
        self.path = path
        self._lease_s = lease_s
        self._beat_s = beat_s
        self._heartbeats: dict[str, threading.Event] = {}
        self._seen: dict[tuple[str, int], tuple[int, float]] = {}

    def take(self, key: str) -> Claim | None:
        """Claim a cell; ``None`` when another process holds it."""
        attempts = self._attempts().get(key, [])
        judged = self._read(key, attempts[-1]) if attempts else None
        if attempts and not self._over(key, attempts[-1]):
            return None
        attempt = attempts[-1] + 1 if attempts else 1
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        claim = Claim(
            key=key, attempt=attempt, token=uuid.uuid4().hex, owner=Owner.current(), time=now, deaths=len(attempts)
        )
        if not write_new(self._file(key, attempt), json.dumps(asdict(claim)).encode(), durable=False):
            return None
        if self._attempts().get(key, [attempt])[-1] > attempt or self._taken_anew(key, attempt - 1, judged):
            self._remove(key, attempt)
            return None
        self._beat(claim)
        return claim

    def _taken_anew(self, key: str, attempt: int, judged: Claim | None) -> bool:
        """Whether the attempt judged to be over was removed since, and its number reused by another process."""
        now = self._read(key, attempt)
        return now is not None and (judged is None or now.token != judged.token) and not self._over(key, attempt)

    def holds(self, claim: Claim) -> bool:
        """Whether the claim is still on disk and was not broken."""
        on_disk = self._read(claim.key, claim.attempt)
        if on_disk is None or on_disk.token != claim.token:
            return False
        return not self._file(claim.key, claim.attempt + 1).exists()

    def release(self, claim: Claim) -> None:
        """Release the cell; this attempt does not count as a death."""
        stop_beating = self._heartbeats.pop(claim.token, None)
        if stop_beating is not None:
            stop_beating.set()
        if self.holds(claim):
            self._remove(claim.key, claim.attempt)

    def give_back(self, claim: Claim, *, kind: str, devices: Iterable[str]) -> None:
        """Note that the holder of ``claim`` leaves its cell to others, as ``devices`` failed it in the way ``kind``."""
        entries = [*self.given_back().get(claim.key, []), {"kind": kind, "devices": sorted(devices)}]
        with atomic_write(self._left(claim.key)) as made:
            made.write_text(json.dumps(entries))

    def given_back(self) -> dict[str, list[dict[str, Any]]]:
        """Cell key to how and by which devices it was given back: ``kind`` and ``devices`` of each time."""
        found: dict[str, list[dict[str, Any]]] = {}
        for path in self.path.glob(f"*{_GIVEN_BACK}"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                entries = [{"kind": e["kind"], "devices": list(e["devices"])} for e in json.loads(path.read_bytes())]
                found[path.name.removesuffix(_GIVEN_BACK)] = entries
        return found

    def _left(self, key: str) -> Path:
        return self.path / f"{key}{_GIVEN_BACK}"

    def forget(self, keys: Iterable[str]) -> None:
        """Remove attempts that are over, so that earlier deaths no longer count, nor that the cell was given back."""
        attempts = self._attempts()
        for key in keys:
            if key not in attempts or self._over(key, attempts[key][-1]) or len(attempts[key]) > 1:
                with contextlib.suppress(OSError):
                    self._left(key).unlink(missing_ok=True)
            numbers = attempts.get(key, [])
            over = numbers if numbers and self._over(key, numbers[-1]) else numbers[:-1]
            # Lowest first: the highest one shows others who holds the cell.
            for number in over:
                self._remove(key, number)

    def live(self) -> dict[str, Claim]:
        """Cell key to the claim of the process that runs it now, without expired claims."""
        claims: dict[str, Claim] = {}
        for key, numbers in self._attempts().items():
            claim = self._read(key, numbers[-1])
            if claim is not None and not self._over(key, numbers[-1], confirmed=False):
                claims[key] = claim
        return claims

    def _over(self, key: str, attempt: int, *, confirmed: bool = True) -> bool:
        """Whether an attempt has ended: its process is gone or, where that cannot be checked, its lease has expired."""
        claim = self._read(key, attempt)
        dead = claim.owner.dead() if claim is not None else None
        if dead is not None:
            return dead
        try:
            beat = self._file(key, attempt).stat().st_mtime_ns
        except FileNotFoundError:
            return False
        now = time.monotonic()
        seen, since = self._seen.get((key, attempt), (None, now))
        if seen != beat:
            self._seen[key, attempt] = (beat, now)
            since = now
        old = self._now() - beat / 1e9 > self._lease_s
        if not confirmed:
            return old
        silent = now - since
        return silent > self._lease_s or (old and silent > CONFIRM_BEATS * self._beat_s)

    def _now(self) -> float:
        """The file system's clock, as the clocks of machines that share it may differ."""
        probe = temporary_path(self.path)
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def _attempts(self) -> dict[str, list[int]]:
        attempts: dict[str, list[int]] = {}
        try:
            paths = list(self.path.iterdir())
        except FileNotFoundError:
            return {}
        for path in paths:
            match = _NAME.fullmatch(path.name)
            if match:
                attempts.setdefault(match[1], []).append(int(match[2]))
        return {key: sorted(numbers) for key, numbers in attempts.items()}

    def _read(self, key: str, attempt: int) -> Claim | None:
        """The claim, or ``None`` when it is gone or unreadable."""
        try:
            value: dict[str, Any] = json.loads(self._file(key, attempt).read_bytes())
            return Claim(**{**value, "owner": Owner(**value["owner"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remove(self, key: str, attempt: int) -> None:
        path = self._file(key, attempt)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("cannot remove the claim %s: %s", path, error)

    def _file(self, key: str, attempt: int) -> Path:
        return self.path / f"{key}.{attempt}.json"

    def _beat(self, claim: Claim) -> None:
        stop_beating = self._heartbeats[claim.token] = threading.Event()
        path = self._file(claim.key, claim.attempt)

        def beat() -> None:
            while not stop_beating.wait(self._beat_s):
                on_disk = self._read(claim.key, claim.attempt)
                if on_disk is not None and on_disk.token != claim.token:
                    # Another process has reused the number: a heartbeat would keep its claim alive.
                    return
                try:
                    os.utime(path)
                except FileNotFoundError:
                    return
                except OSError as error:
                    _log.warning("cannot touch the claim %s: %s", path, error)

        threading.Thread(target=beat, name=f"claim-{claim.key}", daemon=True).start()


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """A cell that a live worker has claimed."""

    key: str
    owner: str
    """The process that claimed it, as ``host:pid``."""
    step: int | None = None
    """Last logged optimizer step."""
    total_steps: int | None = None
    loss: float | None = None
    """Training loss at ``step``."""

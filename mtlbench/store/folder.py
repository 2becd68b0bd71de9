"""A run folder: everything a run leaves behind, safe for many writers on many machines."""

from __future__ import annotations

import io
import json
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.errors import RequestError
from mtlbench.store.claims import BEAT_S, LEASE_S, Claim, Claims
from mtlbench.store.files import overwrite, write_new
from mtlbench.store.records import Records
from mtlbench.store.requests import Requests, cells_of

if TYPE_CHECKING:
    from mtlbench.status import InFlight

_FOLDERS = ("requests", "records", "claims", "samples", "steps", "adapters", "logs", "quarantine")
_log = logging.getLogger(__name__)


class RunFolder:
    """One run folder. Records are the truth; everything else can be rebuilt from them.

    A claim of another machine outlives its last heartbeat by ``lease_s`` seconds; a heartbeat comes every ``beat_s``.
    """

    def __init__(self, path: Path, *, lease_s: float = LEASE_S, beat_s: float = BEAT_S) -> None:
        self.path = Path(path)
        quarantine = self.path / "quarantine"
        self._requests = Requests(self.path / "requests", quarantine=quarantine)
        self._records = Records(self.path / "records", quarantine=quarantine)
        self._claims = Claims(self.path / "claims", lease_s=lease_s, beat_s=beat_s)

    def preflight(self) -> None:
        """Make the folder and try everything a run needs of it.

        Parents are made only below the working directory: elsewhere a missing parent is more likely a typing error.

        Raises:
            RequestError: the folder cannot be made, is a file, cannot be written or has no hard links.
        """
        path = self.path
        try:
            if path.exists() and not path.is_dir():
                raise RequestError(f"The run folder {str(path)!r} is a file. Name another folder with --out.")
            whole = path.resolve()
            if not whole.parent.is_dir() and Path.cwd().resolve() not in whole.parents:
                raise RequestError(
                    f"The parent of the run folder {str(path)!r} does not exist. Make {str(path.parent)!r} first, "
                    "or name another folder with --out."
                )
            for name in _FOLDERS:
                (path / name).mkdir(parents=True, exist_ok=True)
            for name in _FOLDERS:
                probe = path / name / f".probe-{uuid.uuid4().hex}"
                write_new(probe, b"probe", durable=False)
                probe.unlink()
        except OSError as error:
            raise RequestError(
                f"The run folder {str(path)!r} cannot be used: {error.strerror or error}. It must be writable and on a "
                "file system with hard links; name another one with --out."
            ) from error

    # Requests

    def put_request(self, words: Mapping[str, Any], cells: Sequence[Cell]) -> str:
        """Keep what was asked for and the cells it means; gives the request's id. Equal requests have one id."""
        return self._requests.put(words, cells)

    def requests(self) -> list[dict[str, Any]]:
        """Every request, oldest first: ``id``, ``words``, ``cells``, ``created``. Unreadable ones are logged."""
        return self._requests.all()

    def words(self, request: str) -> dict[str, Any]:
        """The words of one request, as given to :meth:`put_request`.

        Raises:
            StoreError: there is no such request, or it cannot be read.
        """
        words: dict[str, Any] = self._requests.get(request)["words"]
        return words

    def cells(self, request: str) -> list[Cell]:
        """The cells of one request, in the order asked for.

        Raises:
            StoreError: there is no such request, or it cannot be read.
        """
        return cells_of(self._requests.get(request))

    def expected(self) -> list[Cell]:
        """The cells of all requests, each once."""
        return list({cell.key: cell for request in self.requests() for cell in cells_of(request)}.values())

    # Records

    def record(self, key: str) -> Record | None:
        """The record of a cell, checked, or ``None``.

        Raises:
            StoreError: the record was written by a newer version.
        """
        return self._records.get(key)

    def records(self) -> dict[str, Record]:
        """Cell key to record, each checked. One bad file never hides the others."""
        return self._records.all()

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells without a record, in order."""
        return [cell for cell in cells if self.record(cell.key) is None]

    def publish(self, record: Record, claim: Claim) -> bool:
        """Write a record if ``claim`` still stands and its cell has none; once ``True`` comes back, it stays.

        Raises:
            ValueError: the record is of another cell, or holds what JSON cannot (such as NaN).
            TypeError: the record holds what JSON cannot.
        """
        if record.key != claim.key:
            raise ValueError(f"the record of cell {record.key} cannot be published with the claim of {claim.key}")
        if not self._claims.holds(claim):
            _log.warning("cell %s was taken over by another worker: this record is dropped", claim.key)
            return False
        return self._records.add(record)

    def retire_failed(self, keys: Iterable[str]) -> list[str]:
        """Let failed cells run again: their records become ``<key>.failed-<n>.json`` and no longer count."""
        return self._records.retire_failed(keys)

    # Claims

    def claim(self, key: str) -> Claim | None:
        """The right to run a cell that has no record; ``None`` when it has one or another process holds it."""
        claim = self._claims.take(key)
        if claim is None:
            return None
        free = False
        try:
            free = self.record(key) is None
        finally:
            if not free:
                self.release(claim)
        return claim if free else None

    def release(self, claim: Claim) -> None:
        """Give a claim back, with or without a record published."""
        self._claims.release(claim)
        if self._records.has(claim.key):
            self._claims.forget([claim.key])

    def forget_deaths(self, keys: Iterable[str]) -> None:
        """Start counting the deaths of these cells' workers anew."""
        self._claims.forget(keys)

    def claims(self) -> dict[str, Claim]:
        """Cell key to the live claim on it."""
        return self._claims.live()

    def running(self) -> list[InFlight]:
        """The cells that a living worker has, and how far their step logs say they are."""
        from mtlbench.status import InFlight

        found = []
        for key, claim in self.claims().items():
            seen: dict[str, Any] = {}
            for line in self.steps(key):
                seen.update(line)
            found.append(
                InFlight(
                    key=key,
                    owner=f"{claim.owner.host}:{claim.owner.pid}",
                    step=seen.get("step"),
                    total_steps=seen.get("total"),
                    loss=seen.get("loss"),
                )
            )
        return found

    # What a cell leaves beside its record

    def put_samples(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Keep per-example predictions as Parquet; all rows have the keys of the first one."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
        overwrite(self.path / "samples" / f"{key}.parquet", sink.getvalue())

    def samples(self, key: str) -> list[dict[str, Any]] | None:
        """The per-example predictions of a cell, or ``None`` when it has none."""
        import pyarrow.parquet as pq

        path = self.path / "samples" / f"{key}.parquet"
        if not path.exists():
            return None
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows

    def steps_file(self, key: str) -> Path:
        """Where the step log of a cell goes: JSON lines, only ever appended to."""
        return self.path / "steps" / f"{key}.jsonl"

    def steps(self, key: str) -> list[dict[str, Any]]:
        """The step log of a cell's latest attempt; a torn line is left out."""
        lines, _ = self.steps_since(key, 0)
        starts = [i for i, line in enumerate(lines) if "started" in line]
        return lines[starts[-1] + 1 :] if starts else lines

    def steps_since(self, key: str, offset: int) -> tuple[list[dict[str, Any]], int]:
        """The whole lines of a step log from byte ``offset`` on, and the offset to ask for next."""
        try:
            with self.steps_file(key).open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        end = data.rfind(b"\n") + 1
        return _parse_lines(data[:end]), offset + end

    def adapter(self, key: str) -> Path:
        """The folder of a cell's adapter."""
        return self.path / "adapters" / key

    def log(self, worker: int) -> Path:
        """Where the output of the worker with this index goes."""
        return self.path / "logs" / f"worker-{worker}.log"

    def newest_log(self) -> Path | None:
        """The worker log written to last."""
        return max((self.path / "logs").glob("worker-*.log"), key=lambda path: path.stat().st_mtime, default=None)


def newest(parent: Path) -> Path | None:
    """The run folder in ``parent`` that something happened in last, or ``None``."""
    times: dict[Path, float] = {}
    for requests in parent.glob("*/requests"):
        inner = [requests, requests.parent / "records"]
        times[requests.parent] = max(path.stat().st_mtime for path in inner if path.is_dir())
    return max(times, key=lambda folder: times[folder], default=None)


def _parse_lines(data: bytes) -> list[dict[str, Any]]:
    """The JSON objects of ``data``, one per line; what is torn or no object is left out."""
    found = []
    for line in data.split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found

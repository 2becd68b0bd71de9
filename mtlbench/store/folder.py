"""A run folder: all output of a run, safe for concurrent writers on several machines."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mtlbench.api.cell import Cell
from mtlbench.api.record import Provenance, Record
from mtlbench.api.tuning import TunedMethod
from mtlbench.errors import RequestError, StoreError
from mtlbench.files.sealed import Damaged, file_sha256, folder_sha256, write_new
from mtlbench.files.temporary import DiskError, sweep, temporary_path
from mtlbench.store import outdated
from mtlbench.store.claims import BEAT_S, LEASE_S, Claim, Claims
from mtlbench.store.outputs import latest_attempt, lines_since, listed, read_samples, write_samples
from mtlbench.store.problems import Problems
from mtlbench.store.quarantine import Quarantine
from mtlbench.store.records import Records
from mtlbench.store.requests import Requests, cells_of
from mtlbench.store.series import Queue, Series
from mtlbench.store.studies import put_searches, read_searches

if TYPE_CHECKING:
    from mtlbench.store.claims import InFlight

ADAPTER: Final = "adapter_sha256"
"""Provenance field of a record: checksum of the cell's adapter."""
SAMPLES: Final = "samples_sha256"
"""Provenance field of a record: checksum of the file of predictions."""
_log = logging.getLogger(__name__)
T = TypeVar("T")


class RunFolder:
    """One run folder. Records are the source of truth; everything else can be rebuilt from them.

    A claim of another machine expires ``lease_s`` seconds after its last heartbeat; heartbeats come every ``beat_s``.
    """

    def __init__(self, path: Path, *, lease_s: float = LEASE_S, beat_s: float = BEAT_S) -> None:
        self.path = Path(path)
        self._quarantine = Quarantine(self.path / "quarantine")
        self._requests = Requests(self.path / "requests", quarantine=self._quarantine)
        self._records = Records(
            self.path / "records",
            quarantine=self._quarantine,
            conflicts=self.path / "conflicts",
            published=self.path / "published",
        )
        self._claims = Claims(self.path / "claims", lease_s=lease_s, beat_s=beat_s)

    def preflight(self) -> None:
        """Create the folder, check that it can be used, and remove leftovers of dead processes.

        Parents are created only below the working directory: elsewhere a missing parent is more likely a typo.

        Raises:
            RequestError: the folder cannot be made, is a file, cannot be written or has no hard links.
        """
        preflight(self.path)
        self._records.settle()

    # Requests

    def put_request(self, options: Mapping[str, Any], cells: Sequence[Cell]) -> str:
        """Store the options of a request and its cells; returns the request's id. Equal requests have equal ids."""
        forgotten = outdated.forgotten(self.path)
        for cell in cells:
            if cell.key in forgotten:
                outdated.remember(self.path, cell.key)
        return self._requests.put(options, cells)

    def requests(self) -> list[dict[str, Any]]:
        """Every request, oldest first: ``id``, ``words`` (options), ``cells``, ``created``. Skips unreadable ones."""
        return self._requests.all()

    def options(self, request: str) -> dict[str, Any]:
        """The options of one request, as passed to :meth:`put_request`.

        Raises:
            StoreError: there is no such request, or it cannot be read.
        """
        options: dict[str, Any] = self._requests.get(request)["words"]
        return options

    def cells(self, request: str) -> list[Cell]:
        """The cells of one request, in request order.

        Raises:
            StoreError: there is no such request, or it cannot be read.
        """
        return cells_of(self._requests.get(request))

    def series(self) -> Series:
        """A new series of requests, empty."""
        return Series(self.path / "requests")

    def queue(self, request: str, *, series: str | None = None) -> Queue:
        """The cells of a request and of later requests in the series of this name.

        Raises:
            StoreError: there is no such request, or it cannot be read.
        """
        return Queue(self.cells, self.path / "requests", request, series=series)

    def expected(self) -> list[Cell]:
        """The cells of all requests, each once: without forgotten ones, and without those that were never run and
        that a later request asks of other code."""
        there = self.finished()
        cells = outdated.latest(self._requests.cells(), there.__contains__)
        forgotten = outdated.forgotten(self.path)
        return [cell for cell in cells if cell.key not in forgotten]

    # Local backbones: the digest of their weights says which it is, not the path, which changes when folders move

    def known_as(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """The cells as this folder names them: local backbones by the paths of earlier requests with the same weights,
        and cells that an earlier version ran by the keys that it gave them."""
        known: dict[str, str] = {}
        for cell in self.expected() if self.path.is_dir() else ():
            if cell.weights and Path(cell.model).is_absolute():
                known.setdefault(cell.weights, cell.model)
        named = (
            replace(cell, model=known[cell.weights])
            if cell.weights in known and Path(cell.model).is_absolute()
            else cell
            for cell in cells
        )
        return outdated.as_recorded(named, self._records)

    def models_in(self, cells: Iterable[Cell]) -> dict[str, dict[str, list[str]]]:
        """Options of a request that say where the local backbones of ``cells`` are: :meth:`model_places` reads them."""
        models = {cell.weights: cell.model for cell in cells if cell.weights and Path(cell.model).is_absolute()}
        here = self.path.resolve()
        return {"models": {key: [path, os.path.relpath(path, here)] for key, path in models.items()}} if models else {}

    def model_places(self, cell: Cell) -> list[str]:
        """Folders where the local backbone of ``cell`` may be: of the newest request first, and where it was relative
        to this folder, so that both can be moved together."""
        places: list[str] = []
        for request in reversed(self.requests()):
            path, relative = request["words"].get("models", {}).get(cell.weights, (None, None))
            if path is not None:
                places += [path, str((self.path / relative).resolve())]
        return list(dict.fromkeys(places))

    # Records

    def record(self, key: str) -> Record | None:
        """The record of a cell, checked, or ``None``.

        Raises:
            StoreError: the record was written by a newer version.
        """
        return self._records.get(key)

    def records(self) -> dict[str, Record]:
        """Cell key to record, each checked. A damaged file does not affect the others."""
        return self._records.all()

    def problems(self, records: Mapping[str, Record] | None = None) -> list[str]:
        """Problems with the results, one sentence each: damaged, foreign, newer, deleted or replaced files, and results
        of one cell that disagree.

        Pass the ``records`` that :meth:`records` returned to avoid reading them again.
        """
        names = {cell.key: f"{cell.variant} seed {cell.seed}" for cell in self.expected()}
        return [*self._requests.problems(), *Problems(self._records, names, dict(records or {})).sentences()]

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells without a record, in order."""
        there = self.finished()
        return [cell for cell in cells if cell.key not in there or self.record(cell.key) is None]

    def finished(self) -> frozenset[str]:
        """Keys of the cells with a record file, from one listing; none is opened."""
        return self._records.listed()

    def publish(self, record: Record, claim: Claim) -> bool:
        """Write a record if ``claim`` is still valid and its cell has none; returns whether it was written.

        The checksums of the cell's adapter and predictions are added to its provenance.

        Raises:
            ValueError: the record is of another cell, or holds a value that JSON cannot represent, such as NaN.
            TypeError: the record holds a type that JSON cannot represent.
        """
        if record.key != claim.key:
            raise ValueError(f"the record of cell {record.key} cannot be published with the claim of {claim.key}")
        if record.status == "ok":
            checksums: Provenance = {}
            if (adapter := folder_sha256(self.adapter(record.key))) is not None:
                checksums[ADAPTER] = adapter
            if (samples := file_sha256(self._samples(record.key))) is not None:
                checksums[SAMPLES] = samples
            record = replace(record, provenance={**record.provenance, **checksums})
        if not self._claims.holds(claim):
            _log.warning("cell %s was taken over by another worker: dropping this record", claim.key)
            self._records.compare(record)
            return False
        return self._records.add(record)

    def retire_failed(self, keys: Iterable[str]) -> list[str]:
        """Let failed cells run again: their records become ``<key>.failed-<n>.json`` and no longer count.

        Returns their keys. Each is renamed under the cell's claim, as another run may do the same.
        """
        retired = []
        there = self.finished()
        for key in keys:
            record = self.record(key) if key in there else None
            claim = self._claims.take(key) if record is not None and record.status == "failed" else None
            if claim is None:
                continue
            try:
                if self._records.retire(key):
                    retired.append(key)
            finally:
                self._claims.release(claim)
        return retired

    def asked_before(self, cells: Iterable[Cell]) -> list[str]:
        """Keys of other cells of earlier requests that ask the same as ``cells`` of other code."""
        own = {cell.key: cell.question for cell in cells}
        questions = set(own.values())
        return [cell.key for cell in self.expected() if cell.key not in own and cell.question in questions]

    def set_aside(self, keys: Iterable[str]) -> list[str]:
        """Let cells run again: record and outputs become ``<key>.again-<n>`` and no longer count. Returns their keys.

        Raises:
            RequestError: another process runs one of them.
        """
        return [key for key in keys if self._held(key, lambda key: outdated.set_aside(self.path, self._records, key))]

    def forget(self, keys: Iterable[str]) -> None:
        """Move the record and the outputs of cells to ``forgotten/<key>/``; no request here asks for them any more.

        Raises:
            RequestError: another process runs one of them.
        """
        for key in keys:
            self._held(key, lambda key: outdated.forget(self.path, self._records, key))
            self.drop_checkpoints(key)

    def _held(self, key: str, act: Callable[[str], T]) -> T:
        claim = self._claims.take(key)
        if claim is None:
            raise RequestError(f"Cell {key} is being run by another process. Wait until `mtlbench status` shows none.")
        try:
            return act(key)
        finally:
            self._claims.release(claim)

    # Searches

    def put_searches(self, searches: Iterable[TunedMethod]) -> list[Path]:
        """Write what searches found, beside the records that use it; gives their files."""
        return put_searches(self.path / "studies", searches)

    def searches(self) -> tuple[list[TunedMethod], list[str]]:
        """All searches here, and a sentence for each that cannot be read."""
        return read_searches(self.path / "studies")

    # Claims

    def claim(self, key: str) -> Claim | None:
        """Claim a cell that has no record; ``None`` when it has one or another process holds the claim."""
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
        """Release a claim, whether or not a record was published."""
        self._claims.release(claim)
        if self._records.has(claim.key):
            self._claims.forget([claim.key])

    def give_back(self, claim: Claim, *, kind: str, devices: Iterable[str]) -> None:
        """Leave a claimed cell to other workers, as ``devices`` failed it: ``kind`` is ``device`` or ``busy``."""
        self._claims.give_back(claim, kind=kind, devices=devices)

    def given_back(self) -> dict[str, list[dict[str, Any]]]:
        """Key of a cell without a record to how and by which devices it was given back: ``kind``, ``devices``."""
        return self._claims.given_back()

    def forget_deaths(self, keys: Iterable[str]) -> None:
        """Reset the count of worker deaths of these cells."""
        self._claims.forget(keys)

    def claims(self) -> dict[str, Claim]:
        """Cell key to the live claim on it."""
        return self._claims.live()

    def running(self) -> list[InFlight]:
        """The cells that a live worker runs, with their progress by the step log."""
        from mtlbench.store.claims import InFlight

        cells = []
        for key, claim in self.claims().items():
            latest: dict[str, Any] = {}
            for line in self.steps(key):
                latest.update(line)
            cells.append(
                InFlight(
                    key=key,
                    owner=f"{claim.owner.host}:{claim.owner.pid}",
                    step=latest.get("step"),
                    total_steps=latest.get("total"),
                    loss=latest.get("loss"),
                )
            )
        return cells

    # Other outputs of a cell

    def put_samples(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Store per-example predictions as Parquet; all rows must have the keys of the first one."""
        write_samples(self._samples(key), rows)

    def samples(self, key: str) -> list[dict[str, Any]] | None:
        """The per-example predictions of a cell, checked, or ``None`` when it has none; damaged ones are moved away."""
        path = self._samples(key)
        try:
            return read_samples(path)
        except Damaged as error:
            self._quarantine.take(path, reason=str(error), check=read_samples)
            return None

    def checked_samples(self, record: Record) -> bytes | None:
        """The Parquet file of the record's predictions, or ``None`` when there is none; one with another checksum is
        moved away. Records of versions that stored no checksum rely on the one inside the file."""
        path, checksum = self._samples(record.key), record.provenance.get(SAMPLES)
        if checksum is None:
            return path.read_bytes() if self.samples(record.key) is not None else None
        try:
            return _as_recorded(path, checksum)
        except FileNotFoundError:
            return None
        except Damaged as error:
            self._quarantine.take(path, reason=str(error), check=lambda moved: _as_recorded(moved, checksum))
            return None

    def _samples(self, key: str) -> Path:
        return self.path / "samples" / f"{key}.parquet"

    def steps_file(self, key: str) -> Path:
        """File of a cell's step log: JSON lines, append-only."""
        return self.path / "steps" / f"{key}.jsonl"

    def steps(self, key: str) -> list[dict[str, Any]]:
        """The step log of a cell's latest attempt, without incomplete lines.

        An attempt that resumed from a checkpoint has a line ``{"total": steps, "done": steps}``: the steps that earlier
        attempts logged up to there are included, so that every step occurs once.
        """
        return latest_attempt(self.steps_since(key, 0)[0])

    def steps_since(self, key: str, offset: int) -> tuple[list[dict[str, Any]], int]:
        """The complete lines of a step log from byte ``offset`` on, and the offset for the next call."""
        return lines_since(self.steps_file(key), offset)

    def logged(self) -> frozenset[str]:
        """Keys of the cells with a step log, from one listing; none is opened."""
        return frozenset(name.removesuffix(".jsonl") for name in listed(self.path / "steps"))

    def steps_grew(self, key: str, offset: int) -> bool:
        """Whether a step log holds more than ``offset`` bytes; it is not opened."""
        try:
            return self.steps_file(key).stat().st_size > offset
        except OSError:
            return False

    def checkpoints(self, key: str) -> Path:
        """The folder of a cell's checkpoints; exists only while the cell is unfinished."""
        return self.path / "checkpoints" / key

    def drop_checkpoints(self, key: str) -> None:
        """Remove the checkpoints of a cell."""
        shutil.rmtree(self.checkpoints(key), ignore_errors=True)

    def drop_finished_checkpoints(self) -> None:
        """Remove checkpoints of finished cells, which a process that died may have left."""
        for path in sorted((self.path / "checkpoints").glob("*")):
            record = self.record(path.name)
            if record is not None and record.status != "failed":
                self.drop_checkpoints(path.name)

    def adapter(self, key: str) -> Path:
        """The folder of a cell's adapter."""
        return self.path / "adapters" / key

    def checked_adapter(self, record: Record) -> Path:
        """The folder of the record's adapter.

        Raises:
            StoreError: it was changed since.
        """
        path, checksum = self.adapter(record.key), record.provenance.get(ADAPTER)
        if checksum is not None and folder_sha256(path) != checksum:
            raise StoreError(
                f"The adapter {str(path)!r} does not match the checksum in its record: it is damaged or was "
                f"replaced. Delete it and records/{record.key}.json, and run the same command again."
            )
        return path

    def log(self, worker: int) -> Path:
        """Log file of the worker with this index."""
        return self.path / "logs" / f"worker-{worker}.log"

    def newest_log(self) -> Path | None:
        """The most recently written worker log."""
        return max((self.path / "logs").glob("worker-*.log"), key=lambda path: path.stat().st_mtime, default=None)


def _as_recorded(path: Path, checksum: str) -> bytes:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != checksum:
        raise Damaged("the checksum differs from that in the record")
    return data


def newest(parent: Path) -> Path | None:
    """The most recently used run folder in ``parent``, or ``None``."""
    times: dict[Path, float] = {}
    for requests in parent.glob("*/requests"):
        inner = [requests, requests.parent / "records"]
        times[requests.parent] = max(path.stat().st_mtime for path in inner if path.is_dir())
    return max(times, key=lambda folder: times[folder], default=None)


FOLDERS = (
    "requests", "records", "published", "conflicts", "claims", "samples", "steps", "adapters", "logs", "quarantine",
)  # fmt: skip
IN_PLACE = ("steps", "adapters", "logs", "checkpoints")
"""Folders whose files are written in place; in the others files only appear by renaming."""


def preflight(path: Path) -> None:
    """Create the run folder, check every subfolder, and remove temporary files of dead processes.

    Raises:
        RequestError: as :meth:`RunFolder.preflight`.
        DiskError: the disk is full.
    """
    try:
        if path.exists() and not path.is_dir():
            raise RequestError(f"The run folder {str(path)!r} is a file. Name another folder with --out.")
        whole = path.resolve()
        if not whole.parent.is_dir() and Path.cwd().resolve() not in whole.parents:
            raise RequestError(
                f"The parent of the run folder {str(path)!r} does not exist. Make {str(path.parent)!r} first, "
                "or name another folder with --out."
            )
        for name in FOLDERS:
            (path / name).mkdir(parents=True, exist_ok=True)
        for name in FOLDERS:
            probe = temporary_path(path / name)
            write_new(probe, b"probe", durable=False)
            probe.unlink()
            sweep(path / name)
        _refuse_links(path)
    except DiskError:
        raise
    except OSError as error:
        shared = ""
        if isinstance(error, PermissionError) and error.filename:
            shared = (
                f" ({error.filename}). If a group shares it, its owner lets the group write with `chmod -R g+rwX` and "
                "works with umask 002"
            )
        raise RequestError(
            f"The run folder {str(path)!r} cannot be used: {error.strerror or error}{shared}. It must be writable and "
            "on a file system with hard links; name another one with --out."
        ) from error


def _refuse_links(path: Path) -> None:
    """Symbolic links in a run folder from somebody else could redirect writes."""
    for name in IN_PLACE:
        for entry in (path / name).glob("*"):
            if entry.is_symlink():
                raise RequestError(
                    f"{str(entry)!r} is a symbolic link: a run would write to where it points. Remove it, or name "
                    "another folder with --out."
                )

"""Several requests with the same workers, as a search runs them: warm, replaced when they die, gone at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from holding import held_until, hold, release
from processes import alive
from toy_worker import COMMAND, ran, toy_cell, toy_folder
from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.executors.local import LocalExecutor
from mtlbench.executors.runner import Session
from mtlbench.store import RunFolder
from mtlbench.workers import worker


def session(folder: RunFolder, *, at_once: int = 2, workers: int = 2) -> Session:
    return Session(folder, LocalExecutor(command=COMMAND), {}, device="cpu", workers=workers, at_once=at_once)


def batches(*sizes: int, do: str = "ok", seconds: float = 0.2) -> list[list[Cell]]:
    found, first = [], 0
    for size in sizes:
        found.append([toy_cell(seed, do=do, seconds=seconds) for seed in range(first, first + size)])
        first += size
    return found


def ask(folder: RunFolder, cells: Sequence[Cell]) -> str:
    return folder.put_request({"data": "demo"}, cells)


def pids(folder: RunFolder) -> set[int]:
    return {record.notes["pid"] for record in folder.records().values() if record.notes}


def all_claimed(folder: RunFolder, cells: Sequence[Cell]) -> bool:
    """Whether a worker of its own has each of the cells."""
    return {cell.key for cell in cells} <= folder.claims().keys()


def series_files(folder: RunFolder) -> list[Path]:
    return [path for path in (folder.path / "requests").iterdir() if path.name[0] == "."]


def test_workers_stay_for_the_next_request_and_end_with_the_session(tmp_path: Path) -> None:
    folder, _ = toy_folder(tmp_path / "run", [])
    with session(folder) as made:
        for cells in batches(1, 2, 2, 1, 2):
            with held_until(folder, cells, partial(all_claimed, folder, cells)):
                assert made.run(ask(folder, cells), cells) == 0
            assert all(map(alive, pids(folder)))
    assert len(folder.records()) == len(ran(folder)) == 8
    assert len(pids(folder)) == 2, "the first request had one cell, the next ones two"
    assert not any(map(alive, pids(folder))), "all have ended by themselves or were ended"
    assert series_files(folder) == [] and list((folder.path / "claims").iterdir()) == []


def test_a_worker_that_dies_between_two_requests_is_replaced(tmp_path: Path) -> None:
    folder, _ = toy_folder(tmp_path / "run", [])
    first, second = batches(2, 2)
    with session(folder) as made:
        assert made.run(ask(folder, first), first) == 0
        before = pids(folder)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, before)))
        assert made.run(ask(folder, second), second) == 0
    assert len(folder.records()) == 4 and not before & {folder.records()[cell.key].notes["pid"] for cell in second}


def test_a_cell_that_kills_its_workers_is_given_up_and_the_next_request_runs(tmp_path: Path) -> None:
    folder, _ = toy_folder(tmp_path / "run", [])
    (bad,), (good,) = batches(1, do="die")[0], batches(1)[0]
    with session(folder, at_once=1, workers=1) as made:
        assert made.run(ask(folder, [bad]), [bad]) == 1
        assert made.run(ask(folder, [good]), [good]) == 0
    records = folder.records()
    assert [records[cell.key].status for cell in (bad, good)] == ["failed", "ok"]


def test_workers_that_nobody_sends_more_end_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "IDLE_S", 0.5)
    folder, request = toy_folder(tmp_path / "run", batches(1)[0])
    series = folder.series()
    series.add(request)
    told: list[str] = []

    def run(cell: Cell) -> object:
        told.append(cell.key)
        from mtlbench.api.record import Record

        return Record(cell=cell, status="ok")

    worker.work(folder, request, run=run, series=series.name, poll_s=0.05)  # type: ignore[arg-type]
    assert len(told) == 1 and len(series_files(folder)) == 1, "the command that made it may still be there"


RUN = """
import signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_session import ask, batches, session
from mtlbench.store import RunFolder
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
folder = RunFolder(Path(sys.argv[1]))
folder.preflight()
codes = []
with session(folder) as made:
    for cells in batches(2, 2, 2):
        codes.append(made.run(ask(folder, cells), cells))
        print(codes[-1], flush=True)
sys.exit(max(codes))
"""


def start(path: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", RUN.format(path=sys.path), str(path)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_requests_and_every_worker(tmp_path: Path, number: signal.Signals) -> None:
    folder, _ = toy_folder(tmp_path / "run", [])
    hold(folder, batches(2, 2, 2)[1])
    process = start(folder.path)
    assert process.stdout is not None
    process.stdout.readline()
    wait_for(lambda: len(folder.claims()) == 2)
    workers = {claim.owner.pid for claim in folder.claims().values()}
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out.split() == ["130", "130"], err
    assert not any(map(alive, workers)) and len(folder.records()) == 2
    assert series_files(folder) == [] and list((folder.path / "claims").iterdir()) == []


def test_a_killed_session_leaves_nothing_that_the_next_one_stumbles_over(tmp_path: Path) -> None:
    folder, _ = toy_folder(tmp_path / "run", [])
    hold(folder, batches(2, 2, 2)[1])
    process = start(folder.path)
    assert process.stdout is not None
    process.stdout.readline()
    wait_for(lambda: len(folder.claims()) == 2)
    workers = {claim.owner.pid for claim in folder.claims().values()}
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(alive, workers)))
    assert len(series_files(folder)) >= 1
    release(folder)
    again = start(folder.path)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert len(folder.records()) == 6 and series_files(folder) == []

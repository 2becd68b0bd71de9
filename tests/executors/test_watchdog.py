"""Cells that hang, crash or fill the memory: each gets its class, and the others go on."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
from holding import held_until
from processes import alive
from toy_worker import COMMAND, ran, toy_cell, toy_folder
from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.executors.local import LocalExecutor
from mtlbench.executors.runner import run
from mtlbench.executors.watch import Heartbeat, overdue
from mtlbench.store import RunFolder
from mtlbench.workers.stacks import frames

SILENCE_S = 4.0
"""Long enough for a worker to start on a busy machine."""


def go(
    path: Path, cells: list[Cell], *, workers: int = 1, silence_s: float = 60, cell_timeout_s: float | None = None
) -> tuple[int, RunFolder]:
    folder, request = toy_folder(path, cells)
    executor = LocalExecutor(command=COMMAND)
    code = run(
        folder,
        request,
        cells,
        executor,
        {},
        device="cpu",
        workers=workers,
        silence_s=silence_s,
        cell_timeout_s=cell_timeout_s,
    )
    return code, folder


def kind(record: Record) -> str:
    return record.failure.kind if record.failure else record.status


@pytest.mark.parametrize("do", ["hang", "spin", "deaf"])
def test_a_silent_cell_times_out_with_its_stack_and_the_others_go_on(tmp_path: Path, do: str) -> None:
    cells = [toy_cell(0), toy_cell(1, do=do), toy_cell(2), toy_cell(3)]
    code, folder = go(tmp_path / "run", cells, silence_s=SILENCE_S)
    records = folder.records()
    assert code == 1 and len(records) == 4
    assert [kind(records[cell.key]) for cell in cells] == ["ok", "timeout", "ok", "ok"]
    failure = records[cells[1].key].failure
    assert failure is not None and "--silence" in failure.message and "logs/" in failure.message
    assert any("toy_worker.py" in frame and "in toy_run" in frame for frame in failure.frames), failure.frames
    assert "toy_run" in (folder.path / "logs" / f"{cells[1].key}.stacks").read_text()
    assert list((folder.path / "claims").iterdir()) == []
    assert ran(folder).count(cells[1].key) == 1
    assert not alive(int(records[cells[1].key].provenance["pid"]))


def test_a_cell_that_goes_on_but_too_long_times_out(tmp_path: Path) -> None:
    cells = [toy_cell(0, seconds=60), toy_cell(1), toy_cell(2, seconds=1.0)]
    code, folder = go(tmp_path / "run", cells, cell_timeout_s=4)
    records = folder.records()
    assert code == 1
    assert [kind(records[cell.key]) for cell in cells] == ["timeout", "ok", "ok"]
    assert "--cell-timeout" in str(records[cells[0].key].failure)


def test_a_crash_inside_a_cell_is_the_plugins_failure(tmp_path: Path) -> None:
    cells = [toy_cell(0, do="crash"), toy_cell(1), toy_cell(2)]
    code, folder = go(tmp_path / "run", cells)
    records = folder.records()
    assert code == 1
    assert [kind(records[cell.key]) for cell in cells] == ["plugin", "ok", "ok"]
    failure = records[cells[0].key].failure
    assert failure is not None and "Segmentation fault" in failure.message
    assert any("string_at" in frame for frame in failure.frames)
    assert ran(folder).count(cells[0].key) == 2
    code, folder = go(tmp_path / "run", [toy_cell(0, do="crash")])
    assert kind(folder.records()[cells[0].key]) == "plugin" and ran(folder).count(cells[0].key) == 4


def test_a_killed_cell_is_tried_again_with_one_worker_less(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cells = [toy_cell(0, do="die_once"), *(toy_cell(seed) for seed in range(1, 6))]
    folder, _ = toy_folder(tmp_path / "run", cells)
    with held_until(folder, cells, lambda: "SIGKILL): restarted once its cell is done" in caplog.text):
        code, _ = go(folder.path, cells, workers=2)
    assert code == 0 and len(folder.records()) == 6


def test_what_a_cell_started_ends_with_its_worker_wherever_it_went(tmp_path: Path) -> None:
    code, folder = go(tmp_path / "run", [toy_cell(0, do="stray")])
    stray = int((folder.path / "stray").read_text())
    assert code == 0
    wait_for(lambda: not alive(stray), seconds=10)


def test_only_a_worker_with_a_cell_or_at_its_start_can_be_overdue() -> None:
    def why(now: float, **known: object) -> str | None:
        signs = Heartbeat(file=0, last=0.0)
        for name, value in known.items():
            setattr(signs, name, value)
        return overdue(signs, now=now, silence_s=10, cell_timeout_s=30)

    assert why(9) is None and "--silence" in str(why(11)), "a worker that never starts"
    assert why(9_999, idle=True) is None, "it waits for the cell of another"
    assert why(31, last=31, cell="a", since=0.5) == "The cell ran for more than 30 s (--cell-timeout)."
    assert why(31, last=31, cell="a", since=5) is None


def test_a_worker_that_waits_for_another_runs_cell_is_not_overdue(tmp_path: Path) -> None:
    cells = [toy_cell(0)]
    folder, _ = toy_folder(tmp_path / "run", cells)
    claim = folder.claim(cells[0].key)
    assert claim is not None

    def release() -> None:
        wait_for(lambda: folder.log(0).exists() and "waiting for" in folder.log(0).read_text())
        time.sleep(2 * SILENCE_S)
        folder.release(claim)

    waiting = threading.Thread(target=release)
    waiting.start()
    code, folder = go(folder.path, cells, silence_s=SILENCE_S)
    waiting.join()
    assert code == 0 and kind(folder.records()[cells[0].key]) == "ok"
    assert "is ended" not in (folder.log(0).read_text())


def test_frames_are_those_of_the_main_thread_or_of_the_one_that_crashed() -> None:
    asked = 'Thread 0x1 (most recent call first):\n  File "a.py", line 1 in f\n\nCurrent thread 0x2 (most recent):\n'
    asked += '  File "b.py", line 2 in g\n  File "c.py", line 3 in <module>\n'
    assert frames(asked) == ("c.py:3 in <module>", "b.py:2 in g")
    crash = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n"
    crash += '  File "a.py", line 1 in f\n\nThread 0x2 (most recent call first):\n  File "c.py", line 3 in <module>\n'
    assert frames(crash) == ("a.py:1 in f",)
    assert frames("") == ()

"""A whole run with real workers: resume, failures, interruption, progress."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from holding import hold, release
from processes import alive
from toy_worker import COMMAND, ran, toy_cell, toy_folder
from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.api.hooks import hookimpl
from mtlbench.api.record import Record
from mtlbench.errors import RequestError
from mtlbench.executors.local import LocalExecutor
from mtlbench.executors.runner import run
from mtlbench.observers import progress
from mtlbench.observers.display import Bars, Running
from mtlbench.store import RunFolder


class Watcher:
    def __init__(self) -> None:
        self.told: list[str] = []

    @hookimpl
    def mtlbench_run_started(self, cells: list[Cell]) -> None:
        self.told.append("run started")

    @hookimpl
    def mtlbench_cell_started(self, cell: Cell) -> None:
        self.told.append(f"{cell.seed} started")

    @hookimpl
    def mtlbench_step_logged(self, cell: Cell, line: dict[str, Any]) -> None:
        if "step" in line:
            self.told.append(f"{cell.seed} step {line['step']}")

    @hookimpl
    def mtlbench_cell_finished(self, record: Record) -> None:
        self.told.append(f"{record.cell.seed} {record.status}")

    @hookimpl
    def mtlbench_run_finished(self) -> None:
        self.told.append("run finished")


def go(path: Path, cells: list[Cell], *, workers: int = 2, **observers: object) -> tuple[int, RunFolder]:
    folder, request = toy_folder(path, cells)
    code = run(folder, request, cells, LocalExecutor(command=COMMAND), observers, device="cpu", workers=workers)
    return code, folder


def test_every_cell_is_told_in_order_and_only_missing_ones_run_again(tmp_path: Path) -> None:
    cells = [toy_cell(seed, seconds=0.1) for seed in range(4)]
    watcher = Watcher()
    code, folder = go(tmp_path / "run", cells, watcher=watcher)
    assert code == 0
    assert watcher.told[0] == "run started" and watcher.told[-1] == "run finished"
    for seed in range(4):
        steps = [f"{seed} step {step}" for step in range(1, 5)]
        told = [word for word in watcher.told if word.startswith(f"{seed} ")]
        assert told == [f"{seed} started", *steps, f"{seed} ok"]
    again = Watcher()
    more = [*cells, toy_cell(9)]
    assert go(tmp_path / "run", more, watcher=again)[0] == 0
    assert [word for word in again.told if "started" in word] == ["run started", "9 started"]
    assert len(ran(folder)) == 5


def test_a_failed_cell_never_stops_the_others_and_is_tried_again(tmp_path: Path) -> None:
    cells = [toy_cell(0, do="fail"), toy_cell(1, do="die"), toy_cell(2, do="skip"), toy_cell(3), toy_cell(4)]
    code, folder = go(tmp_path / "run", cells)
    assert code == 1
    statuses = [folder.records()[cell.key].status for cell in cells]
    assert statuses == ["failed", "failed", "skipped", "ok", "ok"]
    code, folder = go(tmp_path / "run", cells)
    assert code == 1
    counts = [ran(folder).count(cell.key) for cell in cells]
    assert counts == [2, 4, 1, 1, 1], "failed ones again, with deaths counted anew; the others not"
    assert go(tmp_path / "other", [toy_cell(2, do="skip"), toy_cell(3)])[0] == 0, "skipped counts as done"


def test_without_a_worker_left_the_log_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = [toy_cell(seed) for seed in range(3)]
    code, folder = go(tmp_path / "run", cells[:1])
    (folder.path / "broken-engine").touch()
    code, folder = go(tmp_path / "run", cells)
    assert code == 1
    assert "2 of 3 cells have no record" in caplog.text
    assert "RuntimeError: this engine cannot start" in caplog.text and "worker-" in caplog.text
    assert set(folder.records()) == {cells[0].key}


def test_a_wrong_device_starts_nothing_and_ends_the_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder, request = toy_folder(tmp_path / "run", [toy_cell()])
    watcher = Watcher()
    with pytest.raises(RequestError, match="no NVIDIA GPU"):
        run(folder, request, [toy_cell()], LocalExecutor(command=COMMAND), {"w": watcher}, device="cuda", workers=0)
    assert watcher.told == ["run started", "run finished"]


RUN = """
import signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from toy_worker import COMMAND
from mtlbench.observers import progress
from mtlbench.executors.local import LocalExecutor
from mtlbench.executors.runner import run
from mtlbench.store import RunFolder
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[3] == "nohup" else signal.SIG_DFL)
folder, request = RunFolder(Path(sys.argv[1])), sys.argv[2]
cells = folder.cells(request)
sys.exit(run(folder, request, cells, LocalExecutor(command=COMMAND), {{"progress": progress}}, device="cpu", workers=2))
"""


def start(folder: RunFolder, request: str, *, hang_up: str = "hup") -> subprocess.Popen[str]:
    code = RUN.format(path=sys.path)
    words = [sys.executable, "-c", code, str(folder.path), request, hang_up]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_keeps_what_is_done_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    cells = [toy_cell(0), toy_cell(1), toy_cell(2, do="hang"), toy_cell(3, do="hang")]
    folder, request = toy_folder(tmp_path / "run", cells)
    process = start(folder, request)
    wait_for(lambda: len(folder.records()) == 2 and len(ran(folder)) == 4)
    pids = [claim.owner.pid for claim in folder.claims().values()]
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "", "stdout is for tables"
    assert "2 of 4 cells done" in err and "same command again" in err
    assert len(pids) == 2 and not any(alive(pid) for pid in pids)
    assert len(folder.records()) == 2
    assert list((folder.path / "claims").iterdir()) == []


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    folder, request = toy_folder(tmp_path / "run", [toy_cell(0), toy_cell(1, seconds=0.5)])
    process = start(folder, request, hang_up="nohup")
    wait_for(lambda: folder.records())
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0 and len(folder.records()) == 2


def test_a_killed_parent_takes_its_workers_with_it_and_the_next_run_completes(tmp_path: Path) -> None:
    cells = [toy_cell(seed) for seed in range(6)]
    folder, request = toy_folder(tmp_path / "run", cells)
    hold(folder, cells[2:])
    process = start(folder, request)
    wait_for(lambda: folder.records() and folder.claims())
    pids = {claim.owner.pid for claim in folder.claims().values()}
    process.kill()
    process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in pids))
    finished = set(folder.records())
    assert 0 < len(finished) < 6
    release(folder)
    process = start(folder, request)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert len(folder.records()) == 6
    assert all(ran(folder).count(key) == 1 for key in finished)


def test_two_runs_of_one_request_share_the_work(tmp_path: Path) -> None:
    cells = [toy_cell(seed, seconds=0.1) for seed in range(10)]
    folder, request = toy_folder(tmp_path / "run", cells)
    both = [start(folder, request) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert sorted(ran(folder)) == sorted(cell.key for cell in cells)


def test_progress_in_a_log_is_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [toy_cell(0, seconds=0.2), toy_cell(1, do="fail")]
    go(tmp_path / "run", cells, workers=1, progress=progress)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    first, second = "toy[do=ok,seconds=0.2] seed 0", "toy[do=fail,seconds=0.0] seed 1"
    assert f"{first}: started" in lines and f"{first}: ok [1/2]" in lines
    assert any(line.startswith(f"{first}: step 2/4, loss 3.000") for line in lines)
    assert f"{second}: failed (oom): m n [2/2]" in lines
    assert "\x1b" not in shown.err


def test_time_left_follows_from_the_steps() -> None:
    running = Running(cell=toy_cell(), label="x", total=None)
    assert running.text() == "starting"
    for line in [{"started": "t"}, {"total": 100}, {"step": 1, "loss": 2.0, "seconds": 30.0}]:
        running.update(line)
    assert running.left_s is None, "one step tells no speed"
    running.update({"step": 11, "loss": 1.0, "seconds": 40.0})
    assert running.left_s == pytest.approx(89.0)
    assert running.text() == "step 11/100, loss 1.000, 89 s left"
    running.update({"started": "t"})
    assert running.text() == "starting" and running.share == 0.0


def test_progress_on_a_terminal_shows_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    shown = progress.ProgressObserver()
    cells = [toy_cell(0), toy_cell(1)]
    shown.mtlbench_run_started(cells)
    assert isinstance(shown._display, Bars)
    shown.mtlbench_cell_finished(Record(cell=cells[0], status="ok"))
    shown.mtlbench_cell_started(cells[1])
    for line in [{"total": 10}, {"step": 1, "loss": 9.0, "seconds": 1.0}, {"step": 4, "loss": 1.25, "seconds": 4.0}]:
        shown.mtlbench_step_logged(cells[1], line)
    shown._display._rich.refresh()
    assert "step 4/10, loss 1.250, 6 s left" in terminal.getvalue()
    assert "1/2" in terminal.getvalue()
    shown.mtlbench_cell_started(cells[1])
    shown.mtlbench_cell_finished(Record(cell=cells[1], status="ok"))
    shown.mtlbench_run_finished()
    assert "seed 1: ok [2/2]" in terminal.getvalue()


def test_progress_is_silent_where_no_run_started(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress.ProgressObserver()
    shown.mtlbench_cell_started(toy_cell())
    shown.mtlbench_step_logged(toy_cell(), {"step": 1})
    shown.mtlbench_cell_finished(Record(cell=toy_cell(), status="ok"))
    shown.mtlbench_run_finished()
    assert capsys.readouterr() == ("", "")

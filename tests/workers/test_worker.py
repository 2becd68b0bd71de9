"""Real worker processes over tiny cells: each record once, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from holding import hold, release
from processes import alive, python_path
from toy_worker import COMMAND, ran, toy_cell, toy_folder
from waiting import wait_for

from mtlbench.api.executor import DevicesPerCell
from mtlbench.store import RunFolder
from mtlbench.workers.arguments import WorkerArguments


class Started:
    """Worker processes of one test; none outlives it."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, folder: RunFolder, request: str, *more: str) -> subprocess.Popen[bytes]:
        index = len(self.processes)
        words = ["--folder", str(folder.path), "--request", request, "--index", str(index), *more]
        with folder.log(index).open("ab") as log:
            process = subprocess.Popen([*COMMAND, *words], stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        return process


@pytest.fixture
def start() -> Iterator[Started]:
    started = Started()
    yield started
    for process in started.processes:
        process.kill()
        process.wait()


def test_two_workers_share_twelve_cells_and_run_each_once(tmp_path: Path, start: Started) -> None:
    cells = [toy_cell(seed) for seed in range(12)]
    folder, request = toy_folder(tmp_path / "run", cells)
    hold(folder, cells)
    workers = [start(folder, request) for _ in range(2)]
    wait_for(lambda: len(folder.claims()) == 2)
    release(folder)
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    assert sorted(ran(folder)) == sorted(cell.key for cell in cells)
    records = folder.records()
    assert set(records) == {cell.key for cell in cells}
    assert {record.status for record in records.values()} == {"ok"}
    assert {record.notes["pid"] for record in records.values()} == {worker.pid for worker in workers}
    assert list((folder.path / "claims").iterdir()) == []
    assert [line["step"] for line in folder.steps(cells[0].key) if "step" in line] == [1, 2, 3, 4]
    assert start(folder, request).wait(timeout=60) == 0
    assert len(ran(folder)) == 12, "a second start runs nothing"


def test_a_sibling_takes_over_the_cell_of_a_killed_worker(tmp_path: Path, start: Started) -> None:
    cells = [toy_cell(seed) for seed in range(6)]
    folder, request = toy_folder(tmp_path / "run", cells)
    hold(folder, cells)
    first, second = start(folder, request), start(folder, request)
    wait_for(lambda: len(ran(folder)) == 2)
    (lost,) = [key for key, claim in folder.claims().items() if claim.owner.pid == first.pid]
    first.send_signal(signal.SIGKILL)
    first.wait()
    release(folder)
    assert second.wait(timeout=60) == 0
    assert set(folder.records()) == {cell.key for cell in cells}
    counts = {cell.key: ran(folder).count(cell.key) for cell in cells}
    assert counts == {cell.key: 2 if cell.key == lost else 1 for cell in cells}
    assert folder.records()[lost].notes["pid"] == second.pid
    assert len([line for line in folder.steps(lost) if "step" in line]) == 4, "only the attempt that ended is shown"


def test_a_cell_that_kills_its_workers_fails_and_the_others_go_on(tmp_path: Path, start: Started) -> None:
    poison, flaky = toy_cell(0, do="die"), toy_cell(1, do="die_once")
    cells = [poison, flaky, *(toy_cell(seed) for seed in range(2, 6))]
    folder, request = toy_folder(tmp_path / "run", cells)
    codes = []
    while not codes or codes[-1] != 0:
        codes.append(start(folder, request, "--index", "0").wait(timeout=60))
        assert len(codes) < 8
    assert codes == [-signal.SIGKILL] * 3 + [0]
    records = folder.records()
    failed = records.pop(poison.key)
    assert failed.failure is not None and failed.failure.kind == "killed"
    assert ran(folder).count(poison.key) == 2
    assert {record.status for record in records.values()} == {"ok"} and len(records) == 5
    assert ran(folder).count(flaky.key) == 2


@pytest.mark.parametrize("do", ["hang", "fail_when_stopped"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_gives_its_cell_back(tmp_path: Path, start: Started, number: signal.Signals, do: str) -> None:
    hanging = toy_cell(0, do=do)
    folder, request = toy_folder(tmp_path / "run", [hanging, toy_cell(1)])
    worker = start(folder, request)
    wait_for(lambda: ran(folder))
    while worker.poll() is None:
        worker.send_signal(number)
        time.sleep(0.5)
    assert worker.returncode == 128 + number
    assert folder.records() == {}
    assert len(ran(folder)) == 1, "it claimed nothing more"
    claim = folder.claim(hanging.key)
    assert claim is not None and claim.deaths == 0


def test_a_record_that_is_no_json_becomes_a_failure(tmp_path: Path, start: Started) -> None:
    folder, request = toy_folder(tmp_path / "run", [toy_cell(0, do="nan"), toy_cell(1)])
    assert start(folder, request).wait(timeout=60) == 0
    bad, good = (folder.record(toy_cell(seed, do=do).key) for seed, do in [(0, "nan"), (1, "ok")])
    assert bad is not None and bad.failure is not None and bad.failure.kind == "plugin"
    assert good is not None and good.status == "ok"


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    folder, request = toy_folder(tmp_path / "run", [toy_cell(0, do="fork")])
    words = [*COMMAND, "--folder", str(folder.path), "--request", request]
    parent = "import os, subprocess, sys, time\n"
    parent += f"p = subprocess.Popen({words!r} + ['--parent', str(os.getpid())], start_new_session=True)\n"
    parent += "print(p.pid, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        child = folder.path / "child"
        wait_for(lambda: child.exists() and child.read_text())
        process.kill()
    wait_for(lambda: not alive(worker) and not alive(int(child.read_text())))
    assert folder.claims() == {} and folder.records() == {}


def test_a_broken_observer_in_a_worker_harms_nothing(tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "broken_watch-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-watch\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mtlbench.observers]\nbroken_watch = broken_watch\ngone = not_there\n")
    (site / "broken_watch.py").write_text(
        "import mtlbench\n@mtlbench.hookimpl\ndef mtlbench_cell_started(cell):\n    raise OSError('no tracker')\n"
    )
    folder, request = toy_folder(tmp_path / "run", [toy_cell(0), toy_cell(1)])
    environment = {**os.environ, "PYTHONPATH": python_path(site)}
    words = [*COMMAND, "--folder", str(folder.path), "--request", request]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(folder.records()) == 2
    assert ended.stderr.count("'broken_watch' of broken-watch failed in mtlbench_cell_started") == 1
    assert "not_there" in ended.stderr


def test_the_worker_module_loads_no_torch() -> None:
    code = "import sys, mtlbench.workers.worker, mtlbench.executors.runner, mtlbench.executors.local, mtlbench.observers.progress\n"
    code += "assert not {'torch', 'transformers', 'rich', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_main_needs_a_request_that_exists(tmp_path: Path) -> None:
    folder, _ = toy_folder(tmp_path / "run", [])
    words = [*COMMAND, "--folder", str(folder.path), "--request", "nothing"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0 and "There is no request 'nothing'" in ended.stderr


ARGUMENTS = WorkerArguments(
    folder=Path("some folder") / "run",
    request="2026-a",
    index=3,
    device="cuda:1",
    threads=2,
    parent=77,
    devices=4,
    devices_per_cell=DevicesPerCell(usual=2, of={"toy": 4}, shard=True),
    last="abc",
    series="tuning",
    pulse=9,
)


def test_the_command_line_of_a_worker_is_read_as_it_was_written():
    least = WorkerArguments(folder=Path("run"), request="r")
    assert least.argv() == ["--folder", "run", "--request", "r"]
    assert WorkerArguments.parse(least.argv()) == least
    for field in fields(WorkerArguments):
        value = getattr(ARGUMENTS, field.name)
        assert value != getattr(least, field.name), f"the example leaves {field.name} at its default"
        one = replace(least, **{field.name: value})
        assert WorkerArguments.parse(one.argv()) == one
    assert WorkerArguments.parse(ARGUMENTS.argv()) == ARGUMENTS


def test_each_process_of_a_group_gets_its_share_of_the_threads():
    rank = WorkerArguments.parse(replace(ARGUMENTS, threads=9).of_rank().argv())
    assert (rank.threads, rank.parent, rank.pulse) == (2, None, None)
    assert replace(rank, threads=9, parent=77, pulse=9) == replace(ARGUMENTS, threads=9)
    assert replace(ARGUMENTS, threads=2).of_rank().threads == 1, "never none"
    assert replace(ARGUMENTS, threads=None).of_rank().threads is None

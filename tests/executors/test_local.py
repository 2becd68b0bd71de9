"""The local executor: slots of a machine, workers replaced while it helps, nothing left behind."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_worker import COMMAND, alive, ran, toy_cell, toy_folder, wait_for

from mtlbench.api.cell import Cell
from mtlbench.api.executor import Launch, Workers
from mtlbench.errors import RequestError
from mtlbench.executors.devices import cpus, gpus, parse_gpus
from mtlbench.executors.local import LocalExecutor, Slot, slots
from mtlbench.plugins import load_executor
from mtlbench.store import RunFolder

LISTING = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-0001)
  MIG 3g.20gb     Device  1: (UUID: MIG-0002)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb)
"""


def begin(tmp_path: Path, cells: list[Cell], workers: int) -> tuple[RunFolder, Workers]:
    folder, request = toy_folder(tmp_path / "run", cells)
    launch = Launch(folder=folder.path, request=request, workers=workers, device="cpu")
    return folder, LocalExecutor(command=COMMAND).start(launch)


def test_it_is_found_by_name() -> None:
    assert isinstance(load_executor("local"), LocalExecutor)


def test_cores_are_shared_out_over_workers() -> None:
    def chosen(workers: int, cores: int, cells: int = 100) -> list[int]:
        return [slot.threads for slot in slots("auto", workers, cells=cells, cores=cores, cards=())]

    assert chosen(0, cores=2) == [1, 1]
    assert chosen(0, cores=32) == [8] * 4
    assert chosen(3, cores=32) == [10] * 3
    assert chosen(6, cores=2) == [1] * 6
    assert chosen(0, cores=8, cells=1) == [8], "one cell gets the whole machine"
    assert all(slot.device == "cpu" for slot in slots("cpu", 0, cells=9, cores=4, cards=()))


def test_each_gpu_gets_a_worker_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    cards = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")
    assert slots("auto", 0, cells=99, cores=16, cards=cards) == [
        Slot(device="cuda", threads=4, gpu=card) for card in cards
    ]
    assert [slot.gpu for slot in slots("cuda", 2, cells=99, cores=16, cards=cards)] == ["GPU-a", "GPU-b"]
    assert not caplog.records
    assert [slot.gpu for slot in slots("cuda", 5, cells=99, cores=16, cards=cards)] == [*cards, "GPU-a"]
    assert "not comparable" in caplog.text


def test_cuda_without_a_gpu_is_a_wrong_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder, request = toy_folder(tmp_path / "run", [toy_cell()])
    with pytest.raises(RequestError, match="no NVIDIA GPU"):
        LocalExecutor(command=COMMAND).start(Launch(folder=folder.path, request=request, workers=0, device="cuda"))
    assert ran(folder) == []


def test_gpus_are_read_from_the_driver_and_the_environment(tmp_path: Path) -> None:
    assert parse_gpus(LISTING) == ("MIG-0001", "MIG-0002", "GPU-bbbb")
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTING}END\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    path = {"PATH": str(tmp_path) + os.pathsep + os.environ["PATH"]}
    assert gpus(path) == ("MIG-0001", "MIG-0002", "GPU-bbbb")
    assert gpus({**path, "CUDA_VISIBLE_DEVICES": "1, 0"}) == ("1", "0")
    assert gpus({**path, "CUDA_VISIBLE_DEVICES": "0,-1,1"}) == ("0",)
    assert gpus({**path, "CUDA_VISIBLE_DEVICES": ""}) == ()
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert gpus({**path, "CUDA_VISIBLE_DEVICES": "0"}) == ()
    assert gpus({"PATH": str(tmp_path / "empty")}) == ()
    assert cpus() >= 1


def test_workers_end_by_themselves_and_know_their_threads(tmp_path: Path) -> None:
    cells = [toy_cell(seed, seconds=0.05) for seed in range(6)]
    folder, workers = begin(tmp_path, cells, workers=2)
    wait_for(lambda: workers.alive() == 0)
    records = folder.records()
    assert len(records) == len(ran(folder)) == 6
    assert {record.notes["OMP_NUM_THREADS"] for record in records.values()} == {str(max(1, cpus() // 2))}
    assert {record.notes["CUDA_VISIBLE_DEVICES"] for record in records.values()} == {""}
    assert folder.log(0).exists() and folder.log(1).exists()


def test_a_killed_worker_is_replaced_while_cells_are_left(tmp_path: Path) -> None:
    cells = [toy_cell(seed, do="die_once") for seed in range(6)]
    folder, workers = begin(tmp_path, cells, workers=1)
    wait_for(lambda: workers.alive() == 0)
    assert {record.status for record in folder.records().values()} == {"ok"}
    assert len(folder.records()) == 6, "six deaths, each in another cell, are no reason to give up"


def test_a_worker_that_cannot_start_is_not_started_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, request = toy_folder(tmp_path / "run", [toy_cell(), toy_cell(1)])
    (folder.path / "broken-engine").touch()
    launch = Launch(folder=folder.path, request=request, workers=2, device="cpu")
    workers = LocalExecutor(command=COMMAND).start(launch)
    wait_for(lambda: workers.alive() == 0)
    assert folder.log(0).read_text().count("RuntimeError: this engine cannot start") == 3
    assert caplog.text.count("is not started again") == 2


def test_stop_leaves_no_process_behind(tmp_path: Path) -> None:
    folder, workers = begin(tmp_path, [toy_cell(0, do="fork"), toy_cell(1, do="hang")], workers=2)
    child = folder.path / "child"
    wait_for(lambda: len(ran(folder)) == 2 and child.exists() and child.read_text())
    pids = [claim.owner.pid for claim in folder.claims().values()]
    assert workers.alive() == len(pids) == 2
    workers.stop(grace_s=20)
    wait_for(lambda: not any(alive(pid) for pid in [*pids, int(child.read_text())]))
    assert workers.alive() == 0
    assert list((folder.path / "claims").iterdir()) == [], "asked first: the cells were given back"


def test_stop_kills_a_worker_that_does_not_answer(tmp_path: Path) -> None:
    folder, workers = begin(tmp_path, [toy_cell(0, do="hang")], workers=1)
    wait_for(lambda: ran(folder))
    (claim,) = folder.claims().values()
    os.kill(claim.owner.pid, signal.SIGSTOP)
    workers.stop(grace_s=0.1)
    assert not alive(claim.owner.pid)
    assert folder.claims() == {}
    again = folder.claim(claim.key)
    assert again is not None and again.deaths == 1

"""The local executor: slots of a machine, workers replaced while it helps, nothing left behind."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import pytest
from processes import alive
from toy_worker import COMMAND, ran, toy_cell, toy_folder
from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.api.executor import Launch, Workers
from mtlbench.errors import RequestError
from mtlbench.executors.devices import Device, Nvidia
from mtlbench.executors.local import LocalExecutor, threads_asked
from mtlbench.executors.slots import DeviceSlot, Pool, pool, shares
from mtlbench.files.owner import cpus
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


def chosen(device: str, workers: int, *, cores: int, cards: tuple[Device, ...] = (), **demand: int) -> Pool:
    wanted = {int(width[1:]): cells for width, cells in (demand or {"w1": 100}).items()}
    return pool(device, workers, demand=wanted, cores=cores, cards=cards)


def cards(count: int) -> tuple[Device, ...]:
    return tuple(Device(id=f"GPU-{number}") for number in range(count))


def test_cores_are_shared_out_over_workers() -> None:
    def threads(workers: int, cores: int, **demand: int) -> list[int]:
        made = chosen("auto", workers, cores=cores, **demand)
        assert made.device == "cpu" and made.slot(made.devices[:1]).visible == ""
        return [made.slot((device,)).threads for device in made.devices]

    assert threads(0, cores=2) == [1, 1]
    assert threads(0, cores=32) == [8] * 4
    assert threads(3, cores=32) == [10] * 3
    assert threads(6, cores=2) == [1] * 6
    assert threads(0, cores=8, w1=1) == [8], "one cell gets the whole machine"
    given = pool("cpu", 2, demand={1: 4}, cores=8, cards=(), threads=3)
    assert [given.slot((device,)).threads for device in given.devices] == [3, 3], "what is asked for is not divided"
    two = chosen("cpu", 1, cores=8, w2=9)
    assert two.slot(two.devices).width == 2 and two.slot(two.devices).threads == 8


def test_each_gpu_gets_a_worker_of_its_own() -> None:
    made = chosen("auto", 0, cores=16, cards=cards(4))
    assert [made.slot((device,)) for device in made.devices] == [
        DeviceSlot(device="cuda", threads=4, devices=(card,)) for card in cards(4)
    ]
    assert chosen("cuda", 2, cores=16, cards=cards(4)).workers == 2
    assert made.slot(made.devices[:2]).visible == "GPU-0,GPU-1"
    with pytest.raises(RequestError, match=r"--workers 5 .* shows 4"):
        chosen("cuda", 5, cores=16, cards=cards(4))
    with pytest.raises(RequestError, match="asks for 8 devices for one cell, and this machine shows 4"):
        chosen("auto", 0, cores=16, cards=cards(4), w8=1, w1=5)


def test_wide_cells_come_first_and_narrow_ones_take_what_is_left() -> None:
    assert shares(4, {1: 9, 2: 9, 4: 2}, most=4) == {4: 1, 2: 0, 1: 0}
    assert shares(4, {1: 9, 2: 1}, most=4) == {2: 1, 1: 2}
    assert shares(5, {1: 9, 4: 3}, most=9) == {4: 1, 1: 1}
    assert shares(8, {2: 9}, most=3) == {2: 3}
    assert shares(3, {4: 2, 1: 1}, most=3) == {4: 0, 1: 1}


def test_cuda_without_a_gpu_is_a_wrong_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as where it is not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    folder, request = toy_folder(tmp_path / "run", [toy_cell()])
    with pytest.raises(RequestError, match="no NVIDIA GPU"):
        LocalExecutor(command=COMMAND, inventory=Nvidia(proc=tmp_path, dev=tmp_path)).start(
            Launch(folder=folder.path, request=request, workers=0, device="cuda")
        )
    assert ran(folder) == []


def test_gpus_are_read_from_the_driver_and_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as where it is not installed
    tool = tmp_path / "nvidia-smi"
    memory = "GPU-bbbb, 143771, 1024"
    tool.write_text(f"#!/bin/sh\nif [ $1 = -L ]; then cat <<'END'\n{LISTING}END\nelse echo '{memory}'; fi\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    path = {"PATH": str(tmp_path) + os.pathsep + os.environ["PATH"]}

    def ids(**environment: str) -> list[str]:
        return [device.id for device in Nvidia({**path, **environment}).devices()]

    assert ids() == ["MIG-0001", "MIG-0002", "GPU-bbbb"]
    whole = Nvidia(path).devices()[2]
    assert (whole.name, whole.memory, whole.used) == ("NVIDIA H200", 143771 * 2**20, 1024 * 2**20)
    assert Nvidia(path).devices()[0].memory is None
    assert ids(CUDA_VISIBLE_DEVICES="1, 0") == ["1", "0"]
    assert ids(CUDA_VISIBLE_DEVICES="0,-1,1") == ["0"]
    assert ids(CUDA_VISIBLE_DEVICES="GPU-b,7,0") == ["GPU-b"], "nothing after the first that is not there"
    assert ids(CUDA_VISIBLE_DEVICES="") == []
    (named,) = Nvidia({**path, "CUDA_VISIBLE_DEVICES": "GPU-b"}).devices()
    assert named.uuid == "GPU-bbbb" and named.memory == whole.memory
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert ids(CUDA_VISIBLE_DEVICES="0") == []
    assert Nvidia({"PATH": str(tmp_path / "empty")}, proc=tmp_path).devices() == ()
    assert cpus() >= 1


@pytest.mark.parametrize(
    ("variable", "threads"), [("3", 3), ("4,2", 4), (" 1 ", 1), ("", None), ("many", None), ("0", None), ("-2", None)]
)
def test_openmp_is_told_a_number_of_threads(variable: str, threads: int | None) -> None:
    assert threads_asked({"OMP_NUM_THREADS": variable}) == threads and threads_asked({}) is None


@pytest.mark.parametrize(("given", "variable", "threads"), [(None, "3", "3"), (2, "3", "2")])
def test_workers_have_the_threads_that_the_user_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int | None, variable: str, threads: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    folder, request = toy_folder(tmp_path / "run", [toy_cell(0)])
    launch = Launch(folder=folder.path, request=request, workers=1, device="cpu", threads=given)
    workers = LocalExecutor(command=COMMAND).start(launch)
    wait_for(lambda: workers.alive() == 0)
    assert {record.notes["OMP_NUM_THREADS"] for record in folder.records().values()} == {threads}


def test_workers_end_by_themselves_and_know_their_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
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


def test_many_cells_that_kill_their_workers_do_not_keep_one_worker_from_the_rest(tmp_path: Path) -> None:
    cells = [*(toy_cell(seed, do="die") for seed in range(4)), toy_cell(4)]
    folder, workers = begin(tmp_path, cells, workers=1)
    wait_for(lambda: workers.alive() == 0)
    records = folder.records()
    assert [records[cell.key].status for cell in cells] == ["failed"] * 4 + ["ok"]
    assert max(map(ran(folder).count, ran(folder))) == 2, "no cell is run a third time"


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

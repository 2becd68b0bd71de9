"""Several workers on a GPU: as many as asked, of one run, each with its share of the memory, and the records say so."""

from __future__ import annotations

import tempfile
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from holding import hold, release
from toy_worker import COMMAND, ran, toy_cell, toy_folder
from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.api.executor import SHARED_BY, DevicesPerCell, Launch, Workers
from mtlbench.backbones.machine import CONTEXT_BYTES, keep_to_share, share_of
from mtlbench.cells.bench import Bench
from mtlbench.cells.provenance import provenance_of
from mtlbench.commands.measure import measure
from mtlbench.commands.run import run
from mtlbench.errors import RequestError
from mtlbench.executors import slots as leases
from mtlbench.executors.devices import Device
from mtlbench.executors.local import LocalExecutor
from mtlbench.executors.ray import RayExecutor
from mtlbench.forecasting.forecast import target_of
from mtlbench.measuring.request import make_rows
from mtlbench.measuring.run import alone_on_device
from mtlbench.planning.request import check_devices, read_devices
from mtlbench.store import RunFolder

SHARED = read_devices("1", workers=2)


@dataclass(frozen=True)
class Shelf:
    """An inventory of GPUs that are not there."""

    names: tuple[str, ...] = field(default_factory=lambda: (f"a-{uuid.uuid4().hex[:8]}", f"b-{uuid.uuid4().hex[:8]}"))

    def devices(self) -> tuple[Device, ...]:
        return tuple(Device(id=name, uuid=name, memory=10 * 2**30) for name in self.names)


@pytest.fixture(autouse=True)
def leases_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def begin(path: Path, cells: list[Cell], inventory: Shelf, devices: DevicesPerCell) -> tuple[RunFolder, Workers]:
    folder, request = toy_folder(path, cells)
    launch = Launch(folder=folder.path, request=request, workers=0, device="cuda", devices=devices)
    return folder, LocalExecutor(command=COMMAND, inventory=inventory).start(launch)


def test_each_gpu_has_as_many_workers_as_asked_and_no_other_run(tmp_path: Path) -> None:
    inventory = Shelf()
    cells, others = [toy_cell(seed) for seed in range(6)], [toy_cell(9)]
    hold(toy_folder(tmp_path / "one", cells)[0], cells)
    one, workers = begin(tmp_path / "one", cells, inventory, SHARED)
    wait_for(lambda: workers.alive() and len(ran(one)) == 4)
    assert workers.alive() == 4 and len(ran(one)) == 4, "two on each of two"
    two, later = begin(tmp_path / "two", others, inventory, SHARED)
    assert later.alive() == 1 and not ran(two), "another run waits, also where it would share"
    release(one)
    wait_for(lambda: (workers.alive(), later.alive()) == (0, 0))
    notes = [record.notes for record in one.records().values()]
    assert len(notes) == 6 and {note[SHARED_BY] for note in notes} == {"2"}
    names = Counter(note["CUDA_VISIBLE_DEVICES"] for note in notes)
    assert set(names) == set(inventory.names)
    ends = max(note["ended"] for note in notes)
    assert all(record.notes["began"] >= ends for record in two.records().values())
    held = leases.take(inventory.devices())
    assert held, "nothing is held when all are done"
    leases.release(held)


def test_a_gpu_stays_locked_until_the_last_of_its_workers_has_ended(tmp_path: Path) -> None:
    inventory = Shelf(names=("only",))
    cells = [toy_cell(0), toy_cell(1, do="die_once")]
    folder, _ = toy_folder(tmp_path / "run", cells)
    hold(folder, cells[:1])
    folder, workers = begin(tmp_path / "run", cells, inventory, SHARED)
    wait_for(lambda: workers.alive() == 1 and cells[1].key in ran(folder))  # the other worker died in its cell
    assert leases.take(inventory.devices()) is None
    release(folder)
    wait_for(lambda: workers.alive() == 0)
    held = leases.take(inventory.devices())
    assert held
    leases.release(held)


def test_one_worker_on_a_gpu_stays_the_rule(tmp_path: Path) -> None:
    folder, workers = begin(tmp_path / "run", [toy_cell()], Shelf(), read_devices("1"))
    wait_for(lambda: workers.alive() == 0)
    (record,) = folder.records().values()
    assert record.notes[SHARED_BY] is None


def test_where_no_gpu_is_shared_the_request_is_refused(tmp_path: Path) -> None:
    none = LocalExecutor(inventory=Shelf(names=()))
    for executor, device, message in (
        (LocalExecutor(inventory=Shelf()), "cpu", "shares a GPU, and --device is cpu.*--workers says how many"),
        (none, "auto", "this machine shows none"),
        (RayExecutor(), "auto", "takes the executor local, and this is ray"),
    ):
        with pytest.raises(RequestError, match=message):
            executor.check_shared(device, SHARED)
        executor.check_shared(device, read_devices("1"))
    with pytest.raises(RequestError, match="toy gets 2 of its own by --devices-per-cell"):
        check_devices(read_devices("2", workers=2), [toy_cell()])
    words = ("--methods", "lora", "--tasks", "glue/rte", "--device", "cpu", "--workers-per-device", "2")
    refused = CliRunner().invoke(run, [*words, "--out", str(tmp_path / "run")]).exception
    assert isinstance(refused, RequestError) and "shares a GPU" in str(refused) and not (tmp_path / "run").exists()


def test_memory_is_divided_and_so_is_the_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 24 * 2**30
    assert share_of(size, workers=1) == size
    assert all(n * (share_of(size, workers=n) + CONTEXT_BYTES) <= size for n in (2, 3, 4, 7))
    cell = toy_cell()
    target = target_of("cuda", Shelf().devices(), todo=[cell] * 9, devices=SHARED)
    assert target.workers == 4 and target.room(cell) == share_of(10 * 2**30, workers=2)
    monkeypatch.setenv(SHARED_BY, "2")
    bench = Bench(device="cpu", threads=torch.get_num_threads(), data="demo")
    assert provenance_of(bench)["workers_per_device"] == 2


def test_the_allocator_is_limited_to_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, int | None]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * 2**30))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, index: limits.append((share, index))
    )
    assert keep_to_share(torch.device("cuda")) == 1 and not limits
    monkeypatch.setenv(SHARED_BY, "4")
    assert keep_to_share(torch.device("cuda")) == keep_to_share(torch.device("cuda:0")) == 4
    share = (2 * 2**30 - CONTEXT_BYTES) / (8 * 2**30)
    assert limits == [(share, None), (share, 0)], "torch takes no device without an index"


def test_measure_refuses_to_share_and_a_device_that_a_run_uses() -> None:
    inventory = Shelf()
    rows = make_rows({"methods": "lora"})
    held = leases.take(inventory.devices()[:1])
    assert held
    with (
        pytest.raises(RequestError, match=f"uses the device {inventory.names[0]}"),
        alone_on_device(rows, inventory=inventory),
    ):
        pass
    leases.release(held)
    with alone_on_device(rows, inventory=inventory):
        assert leases.take(inventory.devices()[:1]) is None
    with alone_on_device(make_rows({"methods": "lora", "device": "cpu"}), inventory=inventory):
        free = leases.take(inventory.devices()[:1])
        assert free
        leases.release(free)
    refused = CliRunner().invoke(measure, ["--methods", "lora", "--workers-per-device", "2"]).exception
    assert isinstance(refused, RequestError) and "alone on its device" in str(refused)

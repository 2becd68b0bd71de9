"""GPUs from a fake inventory: never two workers on one, wide cells not starved, bad devices left out."""

from __future__ import annotations

import itertools
import tempfile
import uuid
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from holding import hold, release
from toy_worker import COMMAND, ran, toy_cell, toy_folder
from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.api.executor import Launch, Workers
from mtlbench.errors import RequestError
from mtlbench.executors import slots as leases
from mtlbench.executors.devices import Device
from mtlbench.executors.local import LocalExecutor
from mtlbench.executors.room import with_room
from mtlbench.planning.request import read_devices
from mtlbench.store import RunFolder


@dataclass
class Shelf:
    """An inventory that a test changes."""

    names: list[str] = field(default_factory=list)
    used: int = 0
    busy: str = "nothing"
    """Word in the names of devices that a stranger has filled."""

    hangs: bool = False

    def devices(self) -> tuple[Device, ...]:
        if self.hangs:
            raise RequestError("/usr/bin/nvidia-smi does not answer (timed out after 20 seconds).")
        return tuple(
            Device(id=name, uuid=name, memory=1000, used=900 if self.busy in name else self.used) for name in self.names
        )


@pytest.fixture(autouse=True)
def leases_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def shelf(*words: str) -> Shelf:
    return Shelf([f"{word}-{uuid.uuid4().hex[:8]}" for word in words])


def begin(
    path: Path, cells: list[Cell], inventory: Shelf, *, devices: str = "1", workers: int = 0
) -> tuple[RunFolder, Workers]:
    folder, request = toy_folder(path, cells)
    launch = Launch(folder=folder.path, request=request, workers=workers, device="cuda", devices=read_devices(devices))
    return folder, LocalExecutor(command=COMMAND, inventory=inventory).start(launch)


def used(folder: RunFolder, cell: Cell) -> tuple[set[str], float, float]:
    notes = folder.records()[cell.key].notes
    return set(notes["CUDA_VISIBLE_DEVICES"].split(",")), notes["began"], notes["ended"]


def test_cells_of_one_two_and_four_gpus_share_four_without_overlap(tmp_path: Path) -> None:
    cells = [toy_cell(seed, seconds=0.2) for seed in range(6)]
    cells += [toy_cell(seed, seconds=0.2, method="pair") for seed in range(3)]
    cells += [toy_cell(seed, seconds=0.2, method="all") for seed in range(2)]
    inventory = shelf(*"abcd")
    folder, workers = begin(tmp_path / "run", cells, inventory, devices="1,pair=2,all=4")
    wait_for(lambda: workers.alive() == 0)
    records = folder.records()
    assert {record.status for record in records.values()} == {"ok"} and len(records) == 11
    assert len(ran(folder)) == 11, "none was begun twice"
    width = {"toy": 1, "pair": 2, "all": 4}
    for cell in cells:
        names, _, _ = used(folder, cell)
        assert len(names) == width[cell.method] and names <= set(inventory.names)
    for one, other in itertools.combinations(cells, 2):
        (names, began, ended), (others, other_began, other_ended) = used(folder, one), used(folder, other)
        assert not names & others or ended <= other_began or other_ended <= began, "one device, two cells at once"
    last_wide = max(used(folder, cell)[2] for cell in cells if cell.method == "all")
    assert all(used(folder, cell)[1] >= last_wide for cell in cells if cell.method != "all"), "the widest go first"
    assert workers.alive() == 0


def test_a_device_on_which_workers_die_is_left_out_and_its_cells_run_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells = [toy_cell(seed, do="bad_gpu") for seed in range(8)]
    inventory = shelf("bad", "good")
    hold(toy_folder(tmp_path / "run", cells)[0], cells)
    folder, workers = begin(tmp_path / "run", cells, inventory)
    wait_for(lambda: workers.alive() and "is not used again" in caplog.text)
    release(folder)  # so far one cell is held on the good device, and two died on the other
    wait_for(lambda: workers.alive() == 0)
    records = folder.records()
    assert {record.status for record in records.values()} == {"ok"} and len(records) == 8
    assert {record.notes["CUDA_VISIBLE_DEVICES"] for record in records.values()} == {inventory.names[1]}
    assert f"{inventory.names[0]} is not used again: 2 workers in a row died on it; 1 left" in caplog.text


def test_a_poison_cell_is_no_reason_to_leave_a_device_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = [toy_cell(0, do="die"), *(toy_cell(seed) for seed in range(1, 4))]
    folder, workers = begin(tmp_path / "run", cells, shelf("only"))
    wait_for(lambda: workers.alive() == 0)
    assert sorted(record.status for record in folder.records().values()) == ["failed", "ok", "ok", "ok"]
    assert "is not used again" not in caplog.text


def test_the_last_device_is_kept_for_the_cells_that_are_good(tmp_path: Path) -> None:
    cells = [*(toy_cell(seed, do="die") for seed in range(3)), toy_cell(3)]
    folder, workers = begin(tmp_path / "run", cells, shelf("only"))
    wait_for(lambda: workers.alive() == 0)
    records = folder.records()
    assert [records[cell.key].status for cell in cells] == ["failed"] * 3 + ["ok"]


@pytest.mark.parametrize("names", [("a", "b"), ("a",)])
def test_a_cell_that_breaks_the_device_is_tried_once_more_in_another_worker(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    cells = [*(toy_cell(seed, do="break", seconds=0.1) for seed in range(2)), *(toy_cell(seed) for seed in range(2, 5))]
    folder, workers = begin(tmp_path / "run", cells, shelf(*names))
    wait_for(lambda: workers.alive() == 0)
    records = folder.records()
    kinds = [failure.kind if (failure := records[cell.key].failure) else "ok" for cell in cells]
    assert kinds == ["device", "device", "ok", "ok", "ok"]
    assert Counter(ran(folder)) == {cell.key: 2 if cell in cells[:2] else 1 for cell in cells}
    assert len({records[cell.key].notes["pid"] for cell in cells[:2]}) == 2, "no worker went on after one"
    assert list((folder.path / "claims").iterdir()) == []


def test_what_broke_one_device_runs_on_another_and_the_device_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells = [toy_cell(seed, do="break_bad") for seed in range(8)]
    inventory = shelf("bad", "good")
    hold(toy_folder(tmp_path / "run", cells)[0], cells)
    folder, workers = begin(tmp_path / "run", cells, inventory)
    wait_for(lambda: workers.alive() and "is not used again" in caplog.text)
    release(folder)  # so far one cell is held on the good device, and two broke the other
    wait_for(lambda: workers.alive() == 0)
    records = folder.records().values()
    assert {record.status for record in records} == {"ok"} and len(records) == 8
    assert {record.notes["CUDA_VISIBLE_DEVICES"] for record in records} == {inventory.names[1]}
    assert f"{inventory.names[0]} is not used again: 2 workers in a row died on it; 1 left" in caplog.text
    assert list((folder.path / "claims").iterdir()) == []


def test_devices_that_others_have_filled_fail_no_cell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = [toy_cell(seed, do="full_bad", seconds=0.2) for seed in range(20)]
    inventory = shelf("good", "good", "bad", "bad")
    folder, workers = begin(tmp_path / "run", cells, inventory)
    wait_for(lambda: workers.alive() == 0)
    records = folder.records().values()
    assert {record.status for record in records} == {"ok"} and len(records) == 20
    assert {record.notes["CUDA_VISIBLE_DEVICES"] for record in records} <= set(inventory.names[:2])
    assert caplog.text.count("is not used again: other programs have filled it") in (1, 2)
    assert list((folder.path / "claims").iterdir()) == []


def test_cells_wait_for_the_next_command_where_every_device_is_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells = [toy_cell(seed, do="full_bad") for seed in range(6)]
    inventory = shelf("bad")
    folder, workers = begin(tmp_path / "run", cells, inventory)
    wait_for(lambda: workers.alive() == 0)
    assert folder.records() == {} and len(ran(folder)) == 2
    assert f"{inventory.names[0]} is not used again: other programs have filled it; 0 left" in caplog.text
    assert "hold 68 GiB" in folder.log(0).read_text()
    folder.forget_deaths([cell.key for cell in cells])
    assert list((folder.path / "claims").iterdir()) == []


def test_a_machine_that_cannot_compute_is_tried_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = toy_folder(tmp_path / "run", [toy_cell(0)])
    (folder.path / "unfit-engine").touch()
    folder, workers = begin(tmp_path / "run", [toy_cell(0)], shelf("old"))
    wait_for(lambda: workers.alive() == 0)
    text = folder.log(0).read_text()
    assert text.count("has no code for this GPU. Install a build for the card.") == 1 and "Traceback" not in text
    assert folder.records() == {} and "is not started again" in caplog.text


def test_a_device_that_is_gone_is_not_used_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inventory = shelf("a", "b")
    cells = [toy_cell(seed, do="die_once" if seed == 0 else "ok", seconds=0.3) for seed in range(6)]
    folder, workers = begin(tmp_path / "run", cells, inventory, workers=1)
    gone = inventory.names.pop(0)
    wait_for(lambda: workers.alive() == 0)
    records = folder.records()
    assert {record.status for record in records.values()} == {"ok"} and len(records) == 6
    assert {record.notes["CUDA_VISIBLE_DEVICES"] for record in records.values()} == {inventory.names[0]}
    assert f"{gone} is not used again: it is gone" in caplog.text


@pytest.mark.parametrize("answer", ["hangs", "lists nothing"])
def test_a_driver_that_does_not_answer_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    cells = [toy_cell(0, do="die_once"), *(toy_cell(seed, seconds=0.1) for seed in range(1, 8))]
    inventory = shelf("a", "b")
    folder, workers = begin(tmp_path / "run", cells, inventory)
    if answer == "hangs":
        inventory.hangs = True
    else:
        inventory.names.clear()
    wait_for(lambda: workers.alive() == 0)
    assert {record.status for record in folder.records().values()} == {"ok"} and len(folder.records()) == 8
    assert "the driver does not list its devices now: they are used as before" in caplog.text
    assert "is not used again" not in caplog.text


def test_cells_that_no_device_group_can_hold_any_more_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inventory = shelf("a", "b")
    cells = [toy_cell(0, do="die_once", seconds=0.3, method="pair"), toy_cell(1)]
    folder, workers = begin(tmp_path / "run", cells, inventory, devices="pair=2")
    inventory.names.pop()
    wait_for(lambda: workers.alive() == 0)
    assert set(folder.records()) == {cells[1].key}, "the narrow one runs on what is left"
    assert "1 usable devices are left, but some cells need 2" in caplog.text


def test_two_runs_never_share_a_device_and_the_second_waits(tmp_path: Path) -> None:
    inventory = shelf("a")
    first = [toy_cell(seed) for seed in range(2)]
    second = [toy_cell(seed) for seed in range(10, 12)]
    hold(toy_folder(tmp_path / "one", first)[0], first)
    one, workers = begin(tmp_path / "one", first, inventory)
    two, later = begin(tmp_path / "two", second, inventory)
    wait_for(lambda: workers.alive() and ran(one))
    assert later.alive() == 1 and not ran(two), "it waits, which is no reason to give up"
    release(one)
    wait_for(lambda: (workers.alive(), later.alive()) == (0, 0))
    ends = max(used(one, cell)[2] for cell in first)
    assert all(used(two, cell)[1] >= ends for cell in second)
    held = leases.take(inventory.devices())
    assert held, "nothing is held when all are done"
    leases.release(held)


def test_a_device_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    inventory = shelf("a")
    _, workers = begin(tmp_path / "run", [toy_cell(0, do="hang")], inventory)
    wait_for(lambda: ran(RunFolder(tmp_path / "run")))
    assert leases.take(inventory.devices()) is None
    workers.stop(grace_s=0)
    held = leases.take(inventory.devices())
    assert held is not None
    leases.release(held)


@pytest.mark.parametrize(("used", "stamp"), [(40, None), (600, "600")])
def test_memory_that_others_have_taken_is_told_and_goes_into_the_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, used: int, stamp: str | None
) -> None:
    inventory = shelf("a")
    inventory.used = used
    folder, workers = begin(tmp_path / "run", [toy_cell()], inventory)
    wait_for(lambda: workers.alive() == 0)
    (record,) = folder.records().values()
    assert record.notes["MTLBENCH_FOREIGN_BYTES"] == stamp
    assert ("not comparable" in caplog.text) == (stamp is not None)


def test_devices_without_room_for_the_weights_are_not_used_and_others_that_strangers_use_come_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The demo backbone has 2 MiB of weights in bfloat16, the toy cells' none that are known."""
    mib, run = 2**20, toy_folder(tmp_path / "run", [toy_cell(0)])[0]

    def card(name: str, free: int) -> Device:
        return Device(id=name, uuid=name, memory=100 * mib, used=(100 - free) * mib)

    cell, devices = replace(toy_cell(0), model="demo"), read_devices("1")
    full, tight, free = card("full", 1), card("tight", 30), card("free", 100)
    assert with_room((full, tight, free), [cell], devices=devices) == (tight, free)
    assert "device full (1.0 MiB free of 100 MiB) is not used: the weights of the cells need" in caplog.text
    with pytest.raises(RequestError, match=r"no device has as much free: full \(1.0 MiB free of 100 MiB\)\. Wait"):
        with_room((full,), [cell], devices=devices)
    assert with_room((full,), [toy_cell(0)], devices=devices) == (full,), "nothing is known of its backbone"
    held = leases.take([full])
    assert held is not None and with_room((full,), [cell], devices=devices) == (full,), "a run of ours, which ends"
    leases.release(held)
    inventory = Shelf(["busy", "idle"], busy="busy")
    folder, workers = begin(run.path, [toy_cell(0)], inventory)
    wait_for(lambda: workers.alive() == 0)
    assert used(folder, toy_cell(0))[0] == {"idle"}

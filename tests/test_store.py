"""The run folder: whole, once and checked, whoever writes and dies."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.record import SCHEMA, Failure, Record
from mtlbench.errors import RequestError, StoreError
from mtlbench.store import Claim, RunFolder, newest
from mtlbench.store.files import seal

SPAWN = multiprocessing.get_context("spawn")


def make_cell(seed: int = 0) -> Cell:
    return Cell(method="toy", tasks=("toy/a", "toy/b"), model="toy", protocol=Protocol(steps=4), seed=seed)


def make_record(seed: int = 0, **changes: Any) -> Record:
    return Record(cell=make_cell(seed), status="ok", **changes)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.preflight()
    return made


def publish(folder: RunFolder, record: Record) -> Path:
    claim = folder.claim(record.key)
    assert claim is not None
    assert folder.publish(record, claim)
    folder.release(claim)
    return folder.path / "records" / f"{record.key}.json"


def dead_claim(folder: RunFolder, key: str) -> Claim:
    """The claim of a process that took it and died."""
    code = "import os, sys; from pathlib import Path; from mtlbench.store import RunFolder\n"
    code += "assert RunFolder(Path(sys.argv[1])).claim(sys.argv[2]); os._exit(9)"
    ended = subprocess.run([sys.executable, "-c", code, str(folder.path), key], check=False)
    assert ended.returncode == 9
    claim = folder._claims._read(key, 1)
    assert claim is not None
    return claim


def test_a_record_comes_back_as_it_was_and_is_written_once(folder: RunFolder) -> None:
    record = make_record(notes={"x": 0.1, "deep": {"ü": [1, None, "é"]}}, guards={"g": True})
    path = publish(folder, record)
    assert folder.record(record.key) == record
    assert folder.records() == {record.key: record}
    assert folder.claim(record.key) is None, "a cell with a record cannot be claimed"
    before = path.read_bytes()
    assert not folder._records.add(make_record(notes={"another": 1}))
    assert path.read_bytes() == before
    assert list((folder.path / "claims").iterdir()) == []


def test_a_record_needs_its_own_claim(folder: RunFolder) -> None:
    claim = folder.claim(make_cell(0).key)
    assert claim is not None
    with pytest.raises(ValueError, match="cannot be published with the claim"):
        folder.publish(make_record(1), claim)
    with pytest.raises(ValueError, match="JSON"):
        folder.publish(make_record(0, notes={"loss": float("nan")}), claim)
    assert folder.records() == {}
    assert [p.name for p in (folder.path / "records").iterdir()] == []


def _race_to_publish(path: str, number: int, start: Barrier, wins: Any) -> None:
    folder = RunFolder(Path(path))
    for seed in range(25):
        record = make_record(seed, notes={"by": number, "padding": "x" * 5000})
        start.wait()
        if folder._records.add(record):
            wins.put((record.key, number))


def test_the_first_of_eight_racing_publishers_wins(folder: RunFolder) -> None:
    start, wins = SPAWN.Barrier(8), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=_race_to_publish, args=(str(folder.path), number, start, wins)) for number in range(8)
    ]
    for process in processes:
        process.start()
    won = [wins.get(timeout=60) for _ in range(25)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert wins.empty()
    assert {key for key, _ in won} == {make_cell(seed).key for seed in range(25)}
    records = folder.records()
    assert {key: records[key].notes["by"] for key in records} == dict(won)
    assert all(path.suffix == ".json" for path in (folder.path / "records").iterdir()), "temporary files are left"


def test_a_record_cut_anywhere_is_never_read(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = publish(folder, make_record())
    other = publish(folder, make_record(1))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert folder.record(path.stem) is None, length
        assert not path.exists()
    assert len(list((folder.path / "quarantine").iterdir())) == len(whole)
    assert "counts as not run" in caplog.text
    assert set(folder.records()) == {other.stem}


def test_a_flipped_bit_never_gives_a_wrong_record(folder: RunFolder) -> None:
    record = make_record(notes={"average": 71.25})
    path = publish(folder, record)
    whole = path.read_bytes()
    dice = random.Random(0)
    for bit in dice.sample(range(len(whole) * 8), 200):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        assert folder.record(record.key) is None, bit
    assert len(list((folder.path / "quarantine").iterdir())) == 200
    publish(folder, record)
    assert folder.record(record.key) == record, "the cell can be run again"


def test_bad_files_never_hide_good_records(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    good = publish(folder, make_record(0))
    records = good.parent
    keys = [make_cell(seed).key for seed in range(1, 7)]
    (records / f"{keys[0]}.json").write_bytes(b"")
    (records / f"{keys[1]}.json").mkdir()
    (records / f"{keys[2]}.json").write_bytes(good.read_bytes())
    (records / "copy of a record.json").write_bytes(good.read_bytes())
    (records / f"{keys[3]}.json").write_bytes(b"[" * 100_000)
    with (records / f"{keys[4]}.json").open("wb") as huge:
        huge.truncate(2**30)
    (records / f"{keys[5]}.json").write_bytes(b'{"body": {"schema": 1}, "sha256": NaN}')
    with caplog.at_level(logging.WARNING):
        assert set(folder.records()) == {good.stem}
    assert len(caplog.records) == 7
    assert len(list((folder.path / "quarantine").iterdir())) == 7
    assert [path.name for path in records.iterdir()] == [good.name]


def test_a_record_of_a_newer_version_stays_and_says_upgrade(folder: RunFolder) -> None:
    good = publish(folder, make_record(0))
    newer = make_record(1)
    path = folder.path / "records" / f"{newer.key}.json"
    path.write_bytes(seal({**newer.to_json(), "schema": SCHEMA + 1}))
    with pytest.raises(StoreError, match="Upgrade"):
        folder.record(newer.key)
    unknown = make_record(2)
    other = folder.path / "records" / f"{unknown.key}.json"
    other.write_bytes(seal({**unknown.to_json(), "costs": {"unheard_of": 1}}))
    with pytest.raises(StoreError, match="another version"):
        folder.record(unknown.key)
    assert set(folder.records()) == {good.stem}
    assert path.exists() and other.exists()


def test_failed_records_are_kept_aside_and_their_cells_run_again(folder: RunFolder) -> None:
    failure = Failure(kind="oom", message="m", next_step="n")
    failed = Record(cell=make_cell(0), status="failed", failure=failure)
    for number in (1, 2):
        publish(folder, failed)
        assert folder.retire_failed([failed.key, make_cell(1).key]) == [failed.key]
        assert (folder.path / "records" / f"{failed.key}.failed-{number}.json").exists()
        assert folder.records() == {}
    ok = publish(folder, make_record(0))
    assert folder.retire_failed([failed.key]) == []
    assert set(folder.records()) == {ok.stem}


def test_a_live_claim_stands_and_a_released_one_counts_no_death(folder: RunFolder) -> None:
    key = make_cell().key
    claim = folder.claim(key)
    assert claim is not None
    assert folder.claims() == {key: claim}
    assert folder.claim(key) is None
    folder.release(claim)
    again = folder.claim(key)
    assert again is not None and again.deaths == 0
    assert not folder.publish(make_record(), claim), "the old claim no longer gives the right"
    assert folder.publish(make_record(), again)


def test_the_claim_of_a_dead_process_is_broken_and_its_late_record_rejected(folder: RunFolder) -> None:
    record = make_record()
    zombie = dead_claim(folder, record.key)
    assert folder.claims() == {}
    claim = folder.claim(record.key)
    assert claim is not None and claim.deaths == 1
    assert not folder.publish(make_record(notes={"by": "zombie"}), zombie)
    assert folder.record(record.key) is None
    assert folder.publish(record, claim)
    assert not folder.publish(make_record(notes={"by": "zombie"}), zombie)
    folder.release(zombie)
    folder.release(claim)
    assert folder.record(record.key) == record
    assert list((folder.path / "claims").iterdir()) == []


def test_deaths_can_be_forgotten_but_never_a_live_claim(folder: RunFolder) -> None:
    key = make_cell().key
    dead_claim(folder, key)
    folder.forget_deaths([key])
    claim = folder.claim(key)
    assert claim is not None and claim.deaths == 0
    folder.forget_deaths([key])
    assert folder.claim(key) is None
    assert folder.publish(make_record(), claim)


def _race_to_claim(path: str, keys: list[str], start: Barrier, wins: Any) -> None:
    folder = RunFolder(Path(path))
    for key in keys:
        start.wait()
        claim = folder.claim(key)
        wins.put((key, claim.deaths if claim else None))
    start.wait()


def test_of_eight_racing_processes_one_breaks_a_dead_claim_and_none_a_live_one(folder: RunFolder) -> None:
    dead = [make_cell(seed).key for seed in range(6)]
    alive = [make_cell(seed).key for seed in range(6, 12)]
    for key in dead:
        dead_claim(folder, key)
    for key in alive:
        assert folder.claim(key) is not None
    start, wins = SPAWN.Barrier(8), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=_race_to_claim, args=(str(folder.path), dead + alive, start, wins)) for _ in range(8)
    ]
    for process in processes:
        process.start()
    taken = [wins.get(timeout=60) for _ in range(8 * 12)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted((key, deaths) for key, deaths in taken if deaths is not None) == sorted((key, 1) for key in dead)


@pytest.mark.parametrize(
    ("change", "age_s", "broken"),
    [
        ({"host": "elsewhere"}, 0, False),
        ({"host": "elsewhere"}, 30, True),
        ({"boot": "another"}, 0, False),
        ({"boot": "another"}, 30, True),
        ({"space": "another container"}, 0, False),
        ({"started": 1}, 0, True),
        ({}, 10**6, False),
    ],
)
def test_a_claim_is_broken_only_when_its_owner_is_certainly_gone(
    folder: RunFolder, change: dict[str, Any], age_s: float, broken: bool
) -> None:
    if "started" in change and not Path("/proc/self/stat").exists():
        pytest.skip("process start times need /proc")
    folder = RunFolder(folder.path, lease_s=20, beat_s=1000)
    key = make_cell().key
    assert folder.claim(key) is not None
    path = folder.path / "claims" / f"{key}.1.json"
    value = json.loads(path.read_text())
    value["owner"] |= change
    path.write_text(json.dumps(value))
    os.utime(path, (time.time() - age_s,) * 2)
    assert (folder.claim(key) is not None) == broken


def test_a_claim_nobody_can_read_falls_to_the_lease(folder: RunFolder) -> None:
    folder = RunFolder(folder.path, lease_s=20)
    key = make_cell().key
    path = folder.path / "claims" / f"{key}.1.json"
    path.write_bytes(b"\x00")
    assert folder.claim(key) is None
    os.utime(path, (time.time() - 30,) * 2)
    assert folder.claim(key) is not None


def test_the_heartbeat_keeps_a_claim_young_until_it_is_released(folder: RunFolder) -> None:
    folder = RunFolder(folder.path, beat_s=0.01)
    claim = folder.claim(make_cell().key)
    assert claim is not None
    path = folder.path / "claims" / f"{claim.key}.1.json"
    os.utime(path, (1.0, 1.0))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime == 1.0:
        assert time.monotonic() < deadline, "no heartbeat came"
        time.sleep(0.01)
    folder.release(claim)
    assert not path.exists()


def _publish_many(path: str, number: int) -> None:
    folder = RunFolder(Path(path))
    for seed in range(number * 100, number * 100 + 40):
        publish(folder, make_record(seed, notes={"padding": "x" * 3000}))


def test_a_reader_never_sees_a_part_while_four_processes_publish(folder: RunFolder) -> None:
    processes = [SPAWN.Process(target=_publish_many, args=(str(folder.path), number)) for number in range(4)]
    for process in processes:
        process.start()
    seen = 0
    while any(process.is_alive() for process in processes):
        records = folder.records()
        assert all(len(record.notes["padding"]) == 3000 for record in records.values())
        assert len(records) >= seen
        seen = len(records)
        folder.claims()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(folder.records()) == 160
    assert list((folder.path / "quarantine").iterdir()) == []


def test_requests_with_other_cells_share_a_folder(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    first = folder.put_request({"methods": "toy", "data": "demo"}, [make_cell(0), make_cell(1)])
    second = folder.put_request({"methods": "toy"}, [make_cell(1), make_cell(2)])
    assert folder.put_request({"methods": "toy"}, [make_cell(1), make_cell(2)]) == second != first
    assert folder.cells(first) == [make_cell(0), make_cell(1)]
    assert folder.words(first) == {"methods": "toy", "data": "demo"}
    assert {request["id"] for request in folder.requests()} == {first, second}
    assert {cell.seed for cell in folder.expected()} == {0, 1, 2} and len(folder.expected()) == 3
    with pytest.raises(StoreError, match="no request 'nothing'"):
        folder.cells("nothing")
    path = folder.path / "requests" / f"{first}.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match="damaged"):
        folder.cells(first)
    assert [request["id"] for request in folder.requests()] == [second]
    assert folder.put_request({"methods": "toy", "data": "demo"}, [make_cell(0), make_cell(1)]) == first
    assert folder.cells(first) == [make_cell(0), make_cell(1)]


def test_samples_and_steps_come_back(folder: RunFolder) -> None:
    rows = [{"task": "toy/a", "row": 0, "scores": [0.5, -1.0]}, {"task": "toy/a", "row": 1, "scores": [0.25]}]
    assert folder.samples("ab") is None
    folder.put_samples("ab", rows)
    assert folder.samples("ab") == rows
    assert folder.steps("ab") == []
    with folder.steps_file("ab").open("ab") as file:
        file.write(b'{"started": "t"}\n{"step": 1}\n{"step": 2, "lo')
        file.flush()
        assert folder.steps("ab") == [{"step": 1}]
        lines, offset = folder.steps_since("ab", 0)
        assert len(lines) == 2
        file.write(b'ss": 3.0}\n')
    assert folder.steps_since("ab", offset)[0] == [{"step": 2, "loss": 3.0}]
    with folder.steps_file("ab").open("ab") as file:
        file.write(b'torn\n{"started": "t"}\n{"step": 7}\n')
    assert folder.steps("ab") == [{"step": 7}], "only the latest attempt counts"


def test_running_tells_who_and_how_far(folder: RunFolder) -> None:
    key = make_cell().key
    assert folder.claim(key) is not None
    folder.steps_file(key).write_text('{"started": "t"}\n{"total": 40}\n{"step": 8, "loss": 1.5}\n')
    (seen,) = folder.running()
    assert (seen.key, seen.step, seen.total_steps, seen.loss) == (key, 8, 40, 1.5)
    assert seen.owner.endswith(f":{os.getpid()}")


@pytest.mark.parametrize("name", ["with space", "ünïcode ☃", "x" * 200])
def test_any_folder_name_works(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / name)
    folder.preflight()
    path = publish(folder, make_record())
    assert folder.record(path.stem) == make_record()
    assert newest(tmp_path) == folder.path


def test_a_folder_that_cannot_be_used_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for path, words in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "inside", "does not exist"),
        (tmp_path / "no" / "parent", "does not exist"),
        (tmp_path / ("x" * 300), "cannot be used"),
        (Path("/proc/run"), "cannot be used"),
    ]:
        with pytest.raises(RequestError, match=words):
            RunFolder(path).preflight()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RequestError, match="does not exist"):
        RunFolder(Path("../no/parent")).preflight()
    assert not (tmp_path / "no").exists()
    RunFolder(Path("runs/a")).preflight()
    assert newest(Path("runs")) == Path("runs/a")
    assert newest(Path("none")) is None

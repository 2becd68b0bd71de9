"""Claims: one process at a time runs a cell, and only a claim whose owner is gone is broken."""

from __future__ import annotations

import json
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from store_builder import SPAWN, dead_claim, make_cell, make_folder, make_record
from waiting import wait_for

from mtlbench.store import Claim, RunFolder
from mtlbench.store.claims import Claims

OWNER = {"host": "elsewhere", "pid": 1, "started": 1, "boot": "b", "space": "s"}
ELSEWHERE = {"attempt": 1, "token": "t", "owner": OWNER, "time": "", "deaths": 0}


def claimed_within(folder: RunFolder, key: str, *, seconds: float = 0.5) -> Claim | None:
    """The claim, asked for again and again, as workers do; ``seconds`` is the end of patience."""
    deadline = time.monotonic() + seconds
    while (claim := folder.claim(key)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return claim


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_folder(tmp_path / "run")


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
    key = make_cell().key
    assert RunFolder(folder.path, beat_s=1000).claim(key) is not None
    folder = RunFolder(folder.path, lease_s=20, beat_s=0.01)
    path = folder.path / "claims" / f"{key}.1.json"
    value = json.loads(path.read_text())
    value["owner"] |= change
    path.write_text(json.dumps(value))
    os.utime(path, (time.time() - age_s,) * 2)
    assert (key in folder.claims()) != broken
    assert (claimed_within(folder, key, seconds=60 if broken else 0.5) is not None) == broken


def test_a_claim_nobody_can_read_falls_to_the_lease(folder: RunFolder) -> None:
    folder = RunFolder(folder.path, lease_s=20, beat_s=0.01)
    key = make_cell().key
    path = folder.path / "claims" / f"{key}.1.json"
    path.write_bytes(b"\x00")
    assert claimed_within(folder, key) is None
    os.utime(path, (time.time() - 30,) * 2)
    claim = claimed_within(folder, key, seconds=60)
    assert claim is not None
    folder.release(claim)


def test_a_folder_in_place_of_a_claim_blocks_nobody_for_ever(folder: RunFolder) -> None:
    folder = RunFolder(folder.path, lease_s=20, beat_s=0.01)
    key = make_cell().key
    path = folder.path / "claims" / f"{key}.1.json"
    path.mkdir()
    os.utime(path, (time.time() - 30,) * 2)
    claim = claimed_within(folder, key, seconds=60)
    assert claim is not None and folder.publish(make_record(), claim)
    folder.release(claim)
    folder.forget_deaths([key])


@pytest.mark.parametrize("jump_s", [-3600, 3600])
def test_a_clock_that_jumps_breaks_no_claim_that_beats_and_keeps_none_that_does_not(
    folder: RunFolder, jump_s: float
) -> None:
    """The claim of another machine, its last beat an hour off this machine's clock."""
    folder = RunFolder(folder.path, lease_s=1.0, beat_s=0.05)
    key = make_cell().key
    path = folder.path / "claims" / f"{key}.1.json"
    path.write_text(json.dumps({**ELSEWHERE, "key": key}))

    def claimed(*, beating: bool) -> Claim | None:
        deadline = time.monotonic() + (3.0 if beating else 60.0)
        at = time.time() - jump_s
        while time.monotonic() < deadline:
            if beating:
                at += 0.01
                os.utime(path, (at, at))
            if (claim := folder.claim(key)) is not None:
                return claim
            time.sleep(0.01)
        return None

    assert claimed(beating=True) is None
    assert claimed(beating=False) is not None


def test_a_number_that_was_given_back_and_taken_anew_is_not_broken(folder: RunFolder) -> None:
    """Between the look at a dead claim and the new one, others finish with the dead one and take its number."""
    key = make_cell().key
    dead_claim(folder, key)

    class Slow(Claims):
        def _over(self, key: str, attempt: int, *, confirmed: bool = True) -> bool:
            over = super()._over(key, attempt, confirmed=confirmed)
            if over and not theirs:
                folder.forget_deaths([key])
                theirs.append(folder.claim(key))
            return over

    theirs: list[Claim | None] = []
    assert Slow(folder.path / "claims").take(key) is None
    assert theirs[0] is not None and folder.publish(make_record(), theirs[0])


def test_a_heartbeat_keeps_no_claim_of_another_process_alive(folder: RunFolder) -> None:
    folder = RunFolder(folder.path, beat_s=0.01)
    claim = folder.claim(make_cell().key)
    assert claim is not None
    path = folder.path / "claims" / f"{claim.key}.1.json"
    path.write_text(json.dumps({**ELSEWHERE, "key": claim.key}))
    time.sleep(0.1)
    os.utime(path, (1.0, 1.0))
    time.sleep(0.1)
    assert path.stat().st_mtime == 1.0


def test_the_heartbeat_keeps_a_claim_young_until_it_is_released(folder: RunFolder) -> None:
    folder = RunFolder(folder.path, beat_s=0.01)
    claim = folder.claim(make_cell().key)
    assert claim is not None
    path = folder.path / "claims" / f"{claim.key}.1.json"
    os.utime(path, (1.0, 1.0))
    wait_for(lambda: path.stat().st_mtime != 1.0)
    folder.release(claim)
    assert not path.exists()

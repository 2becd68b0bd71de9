"""The records of a run folder: whole, once and checked, whoever writes and dies."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from store_builder import SPAWN, make_cell, make_folder, make_record, publish

from mtlbench.api.record import SCHEMA, Failure, Record, TaskScore
from mtlbench.errors import StoreError
from mtlbench.files.sealed import seal
from mtlbench.files.temporary import temporary_path
from mtlbench.store import RunFolder
from mtlbench.store.records import read_record


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_folder(tmp_path / "run")


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
    away = {entry.origin: entry.reason for entry in folder._quarantine.entries()}
    assert len(away) == 7 and all(origin.startswith("records/") for origin in away)
    assert "a directory, not a file" in away.values() and "larger than 67108864 bytes" in away.values()
    assert away["records/copy of a record.json"] == "the record of another cell"
    told = "\n".join(folder.problems())
    assert all(f"cell {key} was damaged" in told for key in keys) and "run the same command again" in told
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


def scored(seed: int, score: float) -> Record:
    return make_record(seed, scores={"toy/a": TaskScore(score=score, metrics={"acc": score / 100}, rows=8)})


def test_two_results_of_one_cell_that_disagree_are_both_kept_and_told(folder: RunFolder) -> None:
    publish(folder, scored(0, 71.25))
    assert not folder._records.add(scored(0, 71.25)), "an equal one is no news"
    assert folder.problems() == []
    assert not folder._records.add(scored(0, 70.0))
    assert not folder._records.add(scored(0, 70.0))
    (told,) = folder.problems()
    assert "disagree: toy/a 71.25" in told and "toy/a 70 in conflicts/" in told
    (kept,) = (folder.path / "conflicts").iterdir()
    assert read_record(kept, scored(0, 0).key) == scored(0, 70.0)
    assert folder.record(make_cell(0).key) == scored(0, 71.25), "the first stays"


def test_a_second_result_under_another_name_is_kept_as_one(folder: RunFolder) -> None:
    publish(folder, scored(0, 71.25))
    (folder.path / "records" / "from the other machine.json").write_bytes(seal(scored(0, 70.0).to_json()))
    assert set(folder.records()) == {make_cell(0).key}
    assert any("disagree" in told for told in folder.problems())


def test_a_record_deleted_or_replaced_by_hand_is_told(folder: RunFolder) -> None:
    deleted, replaced, edited = (publish(folder, scored(seed, 50.0)) for seed in range(3))
    assert folder.problems() == []
    deleted.unlink()
    replaced.write_bytes(seal(scored(1, 99.0).to_json()))
    edited.write_bytes(edited.read_bytes().replace(b"50.0", b"99.0"))
    told = folder.problems()
    assert len(told) == 3
    for path, words in [(deleted, "deleted by hand"), (replaced, "replaced by hand"), (edited, "was damaged")]:
        assert any(path.stem in line and words in line for line in told), (words, told)
    for seed in (0, 2):
        publish(folder, scored(seed, 50.0))
    replaced.unlink()
    publish(folder, scored(1, 50.0))
    assert folder.problems() == ["Damaged files in quarantine/: 1. No result is missing."]


def test_a_failed_record_is_retired_only_by_who_has_the_claim(folder: RunFolder) -> None:
    failed = Record(cell=make_cell(), status="failed", failure=Failure(kind="oom", message="m", next_step="n"))
    publish(folder, failed)
    held = folder._claims.take(failed.key)
    assert held is not None
    assert folder.retire_failed([failed.key]) == [] and folder.record(failed.key) == failed
    folder._claims.release(held)
    assert folder.retire_failed([failed.key]) == [failed.key]
    assert folder.problems() == []


def test_what_a_process_that_died_while_moving_a_file_left_is_put_right(folder: RunFolder) -> None:
    good, bad = publish(folder, make_record(0)), publish(folder, make_record(1))
    for path, name in [(good, "aaaaaaaa"), (bad, "bbbbbbbb")]:
        path.rename(folder.path / "quarantine" / f"{path.stem}.{name}.json")
    torn = folder.path / "quarantine" / f"{bad.stem}.bbbbbbbb.json"
    torn.write_bytes(torn.read_bytes()[:-1])
    folder.preflight()
    assert set(folder.records()) == {good.stem}
    (entry,) = folder._quarantine.entries()
    assert entry.origin == f"records/{bad.name}" and "not a sealed file" in entry.reason


def test_temporary_files_of_dead_processes_are_removed_and_those_of_living_ones_stay(folder: RunFolder) -> None:
    code = "import os, sys; from pathlib import Path; from mtlbench.files.temporary import temporary\n"
    code += "with temporary(Path(sys.argv[1]) / 'records' / 'x', b'half', durable=False): os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=False)
    left = list((folder.path / "records").iterdir())
    assert len(left) == 1 and left[0].suffix == ".tmp"
    living, foreign = temporary_path(folder.path / "records"), folder.path / "records" / ".elsewhere-1-1-2.tmp"
    living.touch()
    foreign.touch()
    folder.preflight()
    assert set((folder.path / "records").iterdir()) == {living, foreign}
    os.utime(foreign, (1.0, 1.0))
    folder.preflight()
    assert set((folder.path / "records").iterdir()) == {living}
    assert folder.records() == {}

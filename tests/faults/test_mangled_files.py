"""Files cut, flipped, emptied, replaced and deleted: what is damaged is never read, the rest always is."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from bench import Bench, Tally
from fault_worker import fault_cell, predictions, undisturbed

from mtlbench.api.cell import Cell
from mtlbench.api.record import SCHEMA
from mtlbench.errors import StoreError
from mtlbench.files.sealed import Damaged, read_sealed, seal, unseal
from mtlbench.store import RunFolder

Make = Callable[[Sequence[Cell]], Bench]


def publish(folder: RunFolder, seed: int) -> Path:
    record = undisturbed(fault_cell(seed))
    claim = folder.claim(record.key)
    assert claim is not None and folder.publish(record, claim)
    folder.release(claim)
    return folder.path / "records" / f"{record.key}.json"


@pytest.mark.fault("F16")
def test_a_record_cut_at_every_byte(bench_of: Make, tally: Tally) -> None:
    bench = bench_of([fault_cell(0), fault_cell(1)])
    path, other = publish(bench.folder, 0), publish(bench.folder, 1)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert bench.folder.record(path.stem) is None, length
        assert not path.exists() and other.exists()
        tally.fault()
    away = bench.folder._quarantine.entries()
    assert len(away) == len(whole) and all(entry.reason for entry in away)
    assert set(bench.folder.records()) == {other.stem}
    bench.complete()
    tally.results(bench)


@pytest.mark.fault("F16")
def test_a_request_cut_at_every_byte(bench_of: Make, tally: Tally) -> None:
    bench = bench_of([fault_cell(0)])
    path = bench.path / "requests" / f"{bench.request}.json"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert bench.folder.requests() == [] and len(bench.folder.problems()) == 1
        with pytest.raises(StoreError, match="Start the same command again"):
            bench.folder.cells(bench.request)
        tally.fault()
    assert bench.folder.put_request({"data": "demo"}, bench.cells) == bench.request
    assert bench.folder.cells(bench.request) == bench.cells


@pytest.mark.fault("F16")
def test_a_step_log_cut_at_every_byte(bench_of: Make, tally: Tally) -> None:
    bench = bench_of([fault_cell(0)])
    assert bench.worker().wait(timeout=60) == 0
    key = bench.cells[0].key
    path = bench.folder.steps_file(key)
    whole, lines = path.read_bytes(), bench.folder.steps(key)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        read = bench.folder.steps(key)
        assert read == lines[: len(read)]
        with path.open("ab") as file:
            file.write(b'\n{"step": 9}\n')
        assert bench.folder.steps(key)[-1] == {"step": 9}, "the next attempt's lines are read"
        tally.fault()


@pytest.mark.fault("F17")
def test_every_bit_of_a_record_flipped(tally: Tally) -> None:
    record = undisturbed(fault_cell(0))
    whole = seal(record.to_json())
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            unseal(bytes(changed))
        tally.fault()


@pytest.mark.fault("F17")
def test_flipped_bits_in_a_run_folder(bench_of: Make, tally: Tally) -> None:
    bench = bench_of([fault_cell(0), fault_cell(1)])
    path, other = publish(bench.folder, 0), publish(bench.folder, 1)
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 500):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        assert bench.folder.missing(bench.cells) == [fault_cell(0)], bit
        assert set(bench.folder.records()) == {other.stem}
        tally.fault()
    assert len(bench.folder._quarantine.entries()) == 500
    bench.complete()
    tally.results(bench)


@pytest.mark.fault("F17")
def test_every_bit_of_predictions_flipped(bench_of: Make, tally: Tally) -> None:
    bench = bench_of([fault_cell(0)])
    key, rows = fault_cell(0).key, predictions(fault_cell(0))
    bench.folder.put_samples(key, rows)
    path = bench.path / "samples" / f"{key}.parquet"
    whole = path.read_bytes()
    for bit in random.Random(1).sample(range(8 * len(whole)), 500):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        assert bench.folder.samples(key) in (None, rows), bit
        tally.fault()


def _directory(path: Path, good: bytes) -> None:
    path.mkdir()


def _full_directory(path: Path, good: bytes) -> None:
    path.mkdir()
    (path / "inside").write_bytes(good)


def _huge(path: Path, good: bytes) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)


def _newer(path: Path, good: bytes) -> None:
    body = undisturbed(fault_cell(0)).to_json()
    path.write_bytes(seal({**body, "schema": SCHEMA + 1}))


ODD: dict[str, Callable[[Path, bytes], object]] = {
    "empty": lambda path, good: path.write_bytes(b""),
    "directory": _directory,
    "full directory": _full_directory,
    "pipe": lambda path, good: os.mkfifo(path),
    "link to nothing": lambda path, good: path.symlink_to("nowhere"),
    "link to itself": lambda path, good: path.symlink_to(path),
    "wrong schema": lambda path, good: path.write_bytes(seal({"schema": "one"})),
    "newer schema": _newer,
    "another record": lambda path, good: path.write_bytes(good),
    "huge": _huge,
    "deep": lambda path, good: path.write_bytes(b"[" * 10**6),
    "not JSON": lambda path, good: path.write_bytes(b"\xff\xfe\x00" * 100),
    "NaN": lambda path, good: path.write_bytes(b'{"body": {"schema": NaN}, "sha256": ""}'),
    "pickle": lambda path, good: path.write_bytes(b"\x80\x04\x95cposix\nsystem\n."),
}


@pytest.mark.fault("F18")
@pytest.mark.parametrize("what", ODD)
def test_an_odd_file_in_place_of_a_record(bench_of: Make, tally: Tally, what: str) -> None:
    bench = bench_of([fault_cell(0), fault_cell(1)])
    good = publish(bench.folder, 1)
    path = bench.path / "records" / f"{fault_cell(0).key}.json"
    ODD[what](path, good.read_bytes())
    tally.fault()
    assert set(bench.folder.records()) == {good.stem}, "the rest is readable"
    assert any(path.stem in line for line in bench.folder.problems()), "the bad one is told"
    if what in ("newer schema", "link to itself"):
        with pytest.raises(StoreError, match="newer|Upgrade|Repair"):
            bench.folder.missing(bench.cells)
        assert path.is_symlink() or path.exists(), "what may be good is not touched"
        path.unlink()
    bench.complete()
    tally.results(bench)


@pytest.mark.fault("F20")
@pytest.mark.repeated()
def test_results_deleted_and_edited_by_hand_between_runs(bench_of: Make, tally: Tally, seed: int) -> None:
    bench = bench_of([fault_cell(n) for n in range(6)])
    bench.complete()
    dice = random.Random(seed)
    deleted, edited = dice.sample(sorted((bench.path / "records").glob("*.json")), 2)
    deleted.unlink()
    value = json.loads(edited.read_text())
    value["body"]["scores"]["toy/a"]["score"] = 99.0
    edited.write_text(json.dumps(value))
    bench.removed.update([deleted.stem, edited.stem])
    tally.fault(2)
    told = "\n".join(bench.folder.problems())
    assert f"({deleted.stem}) was deleted by hand" in told and f"({edited.stem}) was damaged" in told
    assert set(bench.folder.records()).isdisjoint({deleted.stem, edited.stem})
    bench.complete()
    tally.results(bench)


@pytest.mark.fault("F29")
def test_a_disagreeing_record_from_another_machine(bench_of: Make, tally: Tally) -> None:
    """Copied into the folder under any name, or published late: the first stays, both are kept, the report tells."""
    bench = bench_of([fault_cell(0)])
    bench.complete()
    body = read_sealed(next((bench.path / "records").glob("*.json"))) or {}
    body["scores"]["toy/a"]["score"] = 1.5
    (bench.path / "records" / "result from node7.json").write_bytes(seal(body))
    tally.fault()
    assert len(bench.folder.records()) == 1
    (told,) = [line for line in bench.folder.problems() if "disagree" in line]
    assert "toy/a 1.5" in told and "deleting" in told
    assert len(list((bench.path / "conflicts").iterdir())) == 1

"""Many at once on one run folder: each cell is run once in total, and a reader never meets half of anything."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Tally
from fault_worker import fault_cell, undisturbed

from mtlbench.api.cell import Cell
from mtlbench.results.status import status_lines
from mtlbench.results.study import study_of
from mtlbench.store import RunFolder

Make = Callable[[Sequence[Cell]], Bench]
SPAWN = multiprocessing.get_context("spawn")


@pytest.mark.fault("F24")
@pytest.mark.repeated()
def test_two_runs_of_the_same_cells(bench_of: Make, tally: Tally, seed: int) -> None:
    bench = bench_of([fault_cell(n, seconds=0.02) for n in range(8)])
    both = [bench.run(workers=1 + seed % 2) for _ in range(2)]
    tally.fault()
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    tally.results(bench)
    assert sum(bench.published().values()) == 8


@pytest.mark.fault("F25")
@pytest.mark.repeated()
def test_two_runs_with_some_cells_in_common(bench_of: Make, tally: Tally, seed: int) -> None:
    shared = 1 + seed % 6
    bench = bench_of([fault_cell(n, seconds=0.02) for n in range(8)])
    other = Bench(bench.path, [fault_cell(n, seconds=0.02) for n in range(8 - shared, 14)])
    both = [bench.run(), other.run()]
    tally.fault()
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    bench.cells = [fault_cell(n, seconds=0.02) for n in range(14)]
    tally.results(bench)
    assert sum(bench.published().values()) == 14


@pytest.mark.fault("F28")
def test_the_same_cells_asked_for_in_other_words(bench_of: Make, tally: Tally) -> None:
    bench = bench_of([fault_cell(n) for n in range(3)])
    bench.finish()
    again = bench.folder.put_request({"data": "demo", "methods": "the same, asked for in other words"}, bench.cells)
    assert again != bench.request
    first, bench.request = bench.request, again
    bench.finish()
    tally.fault()
    tally.results(bench)
    assert sum(bench.published().values()) == 3
    assert {request["id"] for request in bench.folder.requests()} == {first, again}
    assert len(bench.folder.expected()) == 3


def _publish(path: str, number: int, rounds: int, start: Barrier, told: Any) -> None:
    folder = RunFolder(Path(path))
    took = []
    start.wait()
    for n in range(rounds):
        # Two publishers in a row go for the same cells.
        cell = fault_cell(number // 2 * 1000 + n)
        claim = folder.claim(cell.key)
        if claim is None:
            continue
        began = time.perf_counter()
        done = folder.publish(undisturbed(cell), claim)
        took.append(time.perf_counter() - began)
        folder.release(claim)
        told.put((cell.key, done))
    told.put(("took", took))


@pytest.mark.fault("F26", "F27")
@pytest.mark.parametrize("publishers", [6, pytest.param(64, marks=pytest.mark.slow)])
def test_publishers_and_a_reader_in_a_loop(
    bench_of: Make, tally: Tally, request: pytest.FixtureRequest, publishers: int
) -> None:
    rounds = 20
    cells = [fault_cell(pair * 1000 + n) for pair in range(publishers // 2) for n in range(rounds)]
    bench = bench_of(cells)
    folder, path = bench.folder, str(bench.path)
    start, told = SPAWN.Barrier(publishers), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=_publish, args=(path, number, rounds, start, told)) for number in range(publishers)
    ]
    for process in processes:
        process.start()
    seen, reads, said, ended = 0, 0, [], 0
    while ended < publishers:
        records = folder.records()
        assert len(records) >= seen, "a record that was there is gone"
        seen, reads = len(records), reads + 1
        assert all(record.scores == undisturbed(record.cell).scores for record in records.values())
        study_of(records.values(), expected=cells)
        assert status_lines(cells, records, folder.running())
        assert folder.problems() == []
        while not told.empty():
            said.append(told.get())
            ended += said[-1][0] == "took"
    for process in processes:
        process.join()
        assert process.exitcode == 0
    accepted = [key for key, done in said if done is True]
    tally.fault(len(accepted) + reads)
    assert len(accepted) == len(set(accepted)) == len(cells)
    tally.results(bench)
    took = sorted(seconds for word, times in said if word == "took" for seconds in times)
    request.node.user_properties.append(
        (f"p99 publish, {publishers} processes", f"{took[int(0.99 * len(took))]:.3f} s")
    )

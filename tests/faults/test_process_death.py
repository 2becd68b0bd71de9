"""Workers and parents that die or freeze anywhere: what was published stays, nothing is counted twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from bench import Bench, Tally
from fault_worker import fault_cell, undisturbed
from holding import hold, release
from processes import alive, children, stopped
from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.store import RunFolder
from mtlbench.workers.worker import work

Make = Callable[[Sequence[Cell]], Bench]
ON_THE_WAY = (
    "store.before_write",
    "store.before_link",
    "store.after_link",
    "store.before_replace",
    "worker.claimed",
    "worker.computed",
    "worker.published",
    "cell.started",
    "cell.step",
    "cell.trained",
    "cell.saved",
    "cell.evaluated",
)
"""The fail points that a tiny cell passes at least once."""
QUICK = ("store.before_link", "store.after_link", "store.before_replace", "worker.computed", "cell.step")
REPEATS = 20


def once(path: Path, words: str) -> dict[str, str]:
    return {"MTLBENCH_FAILPOINT": words, "MTLBENCH_FAILPOINT_ONCE": str(path / "fired")}


@pytest.mark.fault("F01")
@pytest.mark.parametrize(
    ("point", "seed"),
    [
        pytest.param(point, seed, marks=() if seed == 0 and point in QUICK else pytest.mark.slow)
        for point in ON_THE_WAY
        for seed in range(REPEATS)
    ],
)
def test_a_worker_killed_at_a_fail_point(bench_of: Make, tally: Tally, point: str, seed: int) -> None:
    bench = bench_of([fault_cell(n) for n in range(4)])
    hit = random.Random(f"{point} {seed}").randint(1, 4)
    victim = bench.worker(**once(bench.path, f"{point}:kill@{hit}"))
    assert victim.wait(timeout=60) == -signal.SIGKILL
    tally.fault()
    assert bench.worker().wait(timeout=60) == 0
    tally.results(bench)
    assert bench.folder.problems() == []
    bench.folder.preflight()
    assert not list(bench.path.rglob("*.tmp")), "what the dead left is cleared up"


@pytest.mark.fault("F02")
@pytest.mark.repeated()
def test_a_parent_killed_with_three_jobs_running(bench_of: Make, tally: Tally, seed: int) -> None:
    bench = bench_of([fault_cell(n, seconds=0.2) for n in range(9)])
    hold(bench.folder, bench.cells)
    parent = bench.run(workers=3)
    wait_for(lambda: len(bench.folder.claims()) == 3)
    release(bench.folder)
    time.sleep(random.Random(seed).uniform(0, 0.5))
    workers = children(parent.pid)
    parent.kill()
    parent.wait()
    tally.fault()
    wait_for(lambda: not any(map(alive, workers)))
    assert bench.folder.claims() == {}
    bench.finish()
    tally.results(bench)


@pytest.mark.fault("F03")
@pytest.mark.repeated()
def test_everything_killed_at_once(bench_of: Make, tally: Tally, seed: int) -> None:
    bench = bench_of([fault_cell(n, seconds=0.1) for n in range(9)])
    parent = bench.run(workers=2)
    wait_for(lambda: bench.folder.claims())
    time.sleep(random.Random(seed).uniform(0, 0.6))
    for pid in [*children(parent.pid), parent.pid]:
        os.kill(pid, signal.SIGKILL)
    parent.wait()
    tally.fault()
    before = bench.folder.records()
    bench.finish()
    assert before.items() <= bench.folder.records().items()
    tally.results(bench)


@pytest.mark.fault("F06")
@pytest.mark.repeated()
@pytest.mark.parametrize("frozen_at", ["worker.claimed", "worker.computed", "store.before_link:stop@2"])
def test_a_worker_of_another_machine_that_freezes_longer_than_its_lease(
    bench_of: Make, tally: Tally, frozen_at: str, seed: int
) -> None:
    """Its cell is taken over, and the record that it has in hand when it wakes up is refused."""
    bench = bench_of([fault_cell(n) for n in range(3)])
    words = frozen_at if ":" in frozen_at else f"{frozen_at}:stop@{1 + seed % 3}"
    zombie = bench.worker(FAULT_HOST="elsewhere", **once(bench.path, words))
    wait_for(lambda: (bench.path / "fired").exists() and stopped(zombie.pid))
    tally.fault()
    (lost,) = bench.folder.claims()
    here = RunFolder(bench.path, lease_s=0.2, beat_s=0.02)
    ran: list[str] = []

    def run(cell: Cell) -> object:
        ran.append(cell.key)
        return undisturbed(cell)

    work(here, bench.request, run=run, poll_s=0.02)  # type: ignore[arg-type]
    assert lost in ran
    zombie.send_signal(signal.SIGCONT)
    assert zombie.wait(timeout=60) == 0
    assert lost not in bench.published(), "the late record is refused"
    tally.results(bench)
    assert list((bench.path / "claims").iterdir()) == []


@pytest.mark.fault("F06")
@pytest.mark.repeated()
def test_a_worker_frozen_on_this_machine_keeps_its_cell(bench_of: Make, tally: Tally, seed: int) -> None:
    """It is not dead: its cell is waited for, however long its beats are missing, until it goes on or is killed."""
    bench = bench_of([fault_cell(n) for n in range(3)])
    frozen = bench.worker(**once(bench.path, f"worker.computed:stop@{1 + seed % 3}"))
    wait_for(lambda: (bench.path / "fired").exists() and stopped(frozen.pid))
    tally.fault()
    (held,) = bench.folder.claims()
    (path,) = (bench.path / "claims").glob(f"{held}.*")
    os.utime(path, (1.0, 1.0))
    other = bench.worker()
    wait_for(lambda: len(bench.folder.records()) == 2)
    assert RunFolder(bench.path, lease_s=0.01, beat_s=0.001).claim(held) is None
    frozen.send_signal(signal.SIGCONT if seed % 2 else signal.SIGKILL)
    assert other.wait(timeout=60) == 0
    frozen.wait(timeout=60)
    tally.results(bench)

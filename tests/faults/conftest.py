"""The frame of the fault suite: which faults a test injects, and what its results came to.

``@pytest.mark.fault("F16")`` names the fault; the fixture ``tally`` counts faults tried and results lost and double.
``python -m tests.faults.figures`` runs the whole suite and writes the table of docs/reliability.md from these counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from bench import Bench, Tally

from mtlbench.api.cell import Cell
from mtlbench.files import failpoints

REPEATS = 20
QUICK = 1


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(*ids): the faults of docs/reliability.md that the test injects")
    config.addinivalue_line("markers", "repeated(quick): run with 20 seeds, of which so many in the default test run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test marked ``repeated`` gets the argument ``seed``; all but the first few are slow."""
    mark = metafunc.definition.get_closest_marker("repeated")
    if mark is None:
        return
    quick = mark.args[0] if mark.args else QUICK
    seeds = [pytest.param(s, marks=() if s < quick else pytest.mark.slow) for s in range(REPEATS)]
    metafunc.parametrize("seed", seeds)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Counts of this test, kept for the figures."""
    counts = Tally()
    yield counts
    request.node.user_properties.append(("tally", (counts.tried, counts.lost, counts.double)))


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """No fail point outlives a test."""
    yield
    failpoints.arm("")


@pytest.fixture
def bench_of(tmp_path: Path) -> Iterator[Callable[[Sequence[Cell]], Bench]]:
    """``bench_of(cells)`` makes a run folder for the cells; what is started on it ends with the test."""
    made: list[Bench] = []

    def make(cells: Sequence[Cell]) -> Bench:
        made.append(Bench(tmp_path / f"run {len(made)}", cells))
        return made[-1]

    yield make
    for bench in made:
        bench.stop()

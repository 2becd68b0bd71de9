"""What is asked for again after something changed: another cell is run anew, another machine or library keeps the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from bench import Bench, Tally
from fault_worker import fault_cell, undisturbed

from mtlbench.api.cell import Cell
from mtlbench.results.study import study_of

Make = Callable[[Sequence[Cell]], Bench]
CELL = replace(fault_cell(0), plugins={"mtlbench-toy": "1.0"})


@pytest.mark.fault("F40")
@pytest.mark.parametrize(
    "changed",
    [
        replace(CELL, settings={"seconds": 0.0, "rank": 4}),
        replace(CELL, plugins={"mtlbench-toy": "1.1"}),
        replace(CELL, protocol=replace(CELL.protocol, steps=3)),
        replace(CELL, protocol=replace(CELL.protocol, data="folder:0123")),
        replace(CELL, weights="another"),
    ],
    ids=["settings", "plugin version", "protocol", "data", "weights"],
)
def test_a_changed_identity_is_a_new_cell_and_the_old_record_stays(bench_of: Make, tally: Tally, changed: Cell) -> None:
    bench = bench_of([CELL])
    bench.complete()
    again = Bench(bench.path, [changed])
    tally.fault()
    assert again.folder.missing([changed]) == [changed]
    again.complete()
    bench.cells = [CELL, changed]
    tally.results(bench)
    assert len(bench.folder.expected()) == 2


@pytest.mark.fault("F40")
@pytest.mark.parametrize("name", ["host", "device", "dtype", "backbone_fingerprint"])
def test_changed_provenance_keeps_the_record_and_is_told(bench_of: Make, tally: Tally, name: str) -> None:
    bench = bench_of([CELL, replace(CELL, seed=1)])
    for cell, where in zip(bench.cells, ["one", "other"], strict=True):
        claim = bench.folder.claim(cell.key)
        assert claim is not None
        assert bench.folder.publish(replace(undisturbed(cell), provenance={name: where}), claim)
        bench.folder.release(claim)
    tally.fault()
    assert bench.folder.missing(bench.cells) == []
    (table,) = study_of(bench.folder.records().values(), expected=bench.cells).tables
    assert any("one, other" in note for note in table.notes)
    tally.results(bench)

"""A device of which other programs hold memory: the cells run, and everything that shows their times says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bench import Bench, Tally
from fault_worker import COMMAND, fault_cell

from mtlbench.api.cell import Cell
from mtlbench.executors import slots as leases
from mtlbench.executors.devices import Device
from mtlbench.executors.local import LocalExecutor
from mtlbench.executors.runner import run
from mtlbench.plugins import load_report
from mtlbench.results.study import study_of

Make = Callable[[Sequence[Cell]], Bench]


@dataclass
class Shelf:
    """Two devices, of one of which a stranger holds ``used`` bytes."""

    used: int

    def devices(self) -> tuple[Device, ...]:
        one = Device(id="taken", uuid="taken", memory=80 * 2**30, used=self.used)
        return one, replace(one, id="free", uuid="free", used=0)


@pytest.mark.fault("F32")
@pytest.mark.parametrize("used", [0, 30 * 2**30], ids=["free", "taken"])
def test_times_on_a_device_that_a_stranger_uses_are_marked(
    bench_of: Make, tally: Tally, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int
) -> None:
    monkeypatch.setattr(leases, "lease_folder", lambda: tmp_path / "leases")
    bench = bench_of([fault_cell(seed, seconds=0.4) for seed in range(6)])
    executor = LocalExecutor(command=COMMAND, inventory=Shelf(used))
    assert run(bench.folder, bench.request, bench.cells, executor, {}, device="cuda") == 0
    tally.fault()
    tally.results(bench)
    records = bench.folder.records().values()
    stamped = [record for record in records if "foreign_device_bytes" in record.provenance]
    assert len(stamped) < len(records), "cells on the free device are not marked"
    assert bool(stamped) == bool(used)
    study = study_of(records)
    document = "".join(str(text) for text in load_report("markdown").render(study).values())
    shown = [line for line in document.splitlines() if "Other programs used memory" in line]
    assert len(shown) == bool(used)
    for record in stamped:
        assert record.provenance["foreign_device_bytes"] == used and "30.00 GiB" in shown[0]

"""What `status` and `plan` say about each cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from record_builder import PROTOCOL, cell, done, failed, skipped

from mtlbench.results.status import plan_lines, status_lines
from mtlbench.store.claims import InFlight


def by_key(*records):
    return {record.key: record for record in records}


def test_each_cell_has_a_line_and_the_first_line_counts():
    cells = [cell(method) for method in ("base", "lora", "peml", "other", "mtl_lora", "vera")]
    records = by_key(done(cells[0], 50.0, 0.0), failed(cells[2]), skipped(cells[3]))
    running = [
        InFlight(key=cells[1].key, owner="node:17", step=40, total_steps=300, loss=0.41237),
        InFlight(key=cells[5].key, owner="node:18"),
    ]
    assert status_lines(cells, records, running) == [
        "6 cells: 2 running, 1 failed, 1 skipped, 1 missing, 1 done",
        "running  lora seed 0      step 40 of 300, loss 0.4124, node:17",
        "running  vera seed 0      no step yet, node:18",
        "failed   peml seed 0      oom: CUDA out of memory. Lower --micro-batch.",
        "skipped  other seed 0     refused: needs two tasks. Add a task.",
        "missing  mtl_lora seed 0",
        "done     base seed 0      average 25.0, 70 s",
    ]


def test_a_record_wins_over_a_claim_left_behind():
    one = cell()
    lines = status_lines([one], by_key(done(one, 60.0, 20.0)), [InFlight(key=one.key, owner="node:17")])
    assert lines[0] == "1 cell: 1 done"


def test_cells_are_told_apart_by_what_differs():
    cells = [
        cell(),
        cell(protocol=replace(PROTOCOL, steps=5)),
        cell(plugins={"mtlbench": "0.2.0"}),
        cell(tasks=("glue/rte",)),
    ]
    lines = status_lines(cells, {})[1:]
    assert len(set(lines)) == 4
    assert any("mtlbench 0.2.0" in line for line in lines)


def test_cells_of_several_requests_count_once_and_strange_records_are_told():
    one = cell()
    lines = status_lines([one, one], by_key(done(cell("base"), 50.0, 0.0)))
    assert lines == ["1 cell: 1 missing", "missing  lora seed 0", "records of cells that no request here names: 1"]


def test_an_empty_folder_has_no_cells():
    assert status_lines([], {}) == ["0 cells"]


def test_a_plan_tells_what_would_run():
    cells = [cell("base"), cell("lora")]
    assert plan_lines(cells, by_key(done(cells[0], 50.0, 0.0)), folder=Path("runs/a")) == [
        "2 cells: 1 to run, 1 done in runs/a",
        "to run   lora seed 0",
        "done     base seed 0  average 25.0, 70 s",
    ]

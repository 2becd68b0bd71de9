"""Rows that are built on one training: it happens once, whoever comes first, and changes no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtlbench import hookimpl
from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_cell
from mtlbench.cells.rebuild import rebuild
from mtlbench.observers.events import Events
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.store import RunFolder
from mtlbench.workers.worker import work

PROTOCOL = {"steps": 8, "batch_size": 8, "train_rows": 60, "eval_rows": 4, "evals_per_run": 2, "held_out": 0.2}
MERGE = "merge[how=ties,rank=2,density=0.5]"


class Trained:
    """Counts steps by method."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    @hookimpl
    def mtlbench_step_finished(self, cell: Cell) -> None:
        self.steps.append(cell.method)


def ran(methods: str, path: Path) -> tuple[dict[str, Record], list[str], list[str]]:
    """Records by variant, the variants in the order they were run, and the method of each step."""
    cells = make_plan(Request(methods=methods, tasks="glue/rte,glue/cola", model="demo", protocol=PROTOCOL)).cells
    folder, trained, order = RunFolder(path), Trained(), []
    folder.preflight()
    bench, events = Bench(device="cpu", threads=1, data="demo"), Events({"trained": trained})

    def run(cell: Cell) -> Record:
        order.append(cell.variant)
        return run_cell(cell, bench=bench, folder=folder, events=events)

    work(folder, folder.put_request({"data": "demo"}, cells), run=run)
    records = {record.cell.variant: record for record in folder.records().values()}
    failures = [record.failure.message for record in records.values() if record.failure is not None]
    if failures:
        raise AssertionError("; ".join(failures))
    return records, order, trained.steps


def adapter(record: Record, path: Path) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(path).adapter(record.key) / "adapter.safetensors")


def test_merging_rows_share_one_training_and_get_what_each_would_have_trained(tmp_path: Path) -> None:
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    records, order, steps = ran(f"{MERGE},merge[how=average,rank=2],lora_st[rank=2]", shared)
    assert order[0] == "lora_st[rank=2]" and len(order) == 3, "what the others are built on comes first"
    assert set(steps) == {"lora_st"}
    base = records["lora_st[rank=2]"]
    single, _, own_steps = ran(MERGE, alone)
    assert own_steps == ["merge"] * len(steps)
    (one,) = [record for variant, record in records.items() if "how=ties" in variant]
    (other,) = single.values()
    found, want = adapter(one, shared), adapter(other, alone)
    assert found.keys() == want.keys()
    for name, value in found.items():
        assert torch.equal(value, want[name]), name
    assert one.scores.keys() == other.scores.keys()
    for task, score in one.scores.items():
        assert score.score == other.scores[task].score
    assert one.notes["merge"] == other.notes["merge"]
    assert one.provenance["trained_in"] == base.key and "trained_in" not in other.provenance
    assert one.costs is not None and base.costs is not None and other.costs is not None
    assert (one.costs.steps, one.costs.train_tokens) == (other.costs.steps, other.costs.train_tokens)
    assert one.costs.train_seconds == base.costs.train_seconds < one.costs.total_seconds
    for name in ("rows_per_task", "stages", "stop_losses", "validation_examples"):
        assert one.notes[name] == base.notes[name]  # type: ignore[literal-required]
    again = rebuild(one, RunFolder(shared).adapter(one.key))
    assert not again.method.task_routed and sum(p.requires_grad for p in again.model.parameters()) == len(found)


def test_a_later_command_finds_the_training_in_the_folder_and_a_changed_adapter_is_refused(tmp_path: Path) -> None:
    records, _, _ = ran("lora_st[rank=2]", tmp_path)
    _, order, steps = ran("merge[how=average,rank=2]", tmp_path)
    assert order == ["merge[how=average,rank=2]"] and not steps
    path = RunFolder(tmp_path).adapter(records["lora_st[rank=2]"].key) / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(AssertionError, match="does not match the checksum"):
        ran("merge[how=svd,rank=2,scale=1.0]", tmp_path)

"""What a cell held is gone when it ends, so that memory and its peak are those of one cell, whatever ran before."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_backbones import tiny_backbone
from torch import nn

from mtlbench.api.cell import Cell
from mtlbench.api.hooks import hookimpl
from mtlbench.api.record import Record
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_cell
from mtlbench.observers.events import Events
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.plugins import load_method, offers
from mtlbench.store import RunFolder

WORDS: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "train_rows": 40,
    "eval_rows": 4,
    "evals_per_run": 1,
    "max_length": 64,
}


class Machine:
    """A worker's warm state and a run folder."""

    def __init__(self, path: Path, *, model: str) -> None:
        self.bench, self.model = Bench(device="cpu", threads=1, data="demo"), model
        self.folder = RunFolder(path)
        self.folder.preflight()

    def run(self, methods: str, observer: object = None, **words: object) -> Record:
        request = Request(
            methods=methods, tasks="glue/rte,glue/sst2", data="demo", model=self.model, protocol={**WORDS, **words}
        )
        (cell,) = make_plan(request).cells
        return run_cell(cell, bench=self.bench, folder=self.folder, events=Events({"test": observer}))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    path = tmp_path_factory.mktemp("machine")
    tiny_backbone(path / "model", architecture="causal")
    gc.collect()
    gc.freeze()  # what was imported is looked through no more: collections are quick
    yield Machine(path / "run", model=str(path / "model"))
    gc.unfreeze()


def models() -> list[nn.Module]:
    """The language models that are alive, without collecting any first."""
    return [thing for thing in gc.get_objects() if type(thing).__name__ == "LlamaForCausalLM"]


def first_party() -> Iterator[object]:
    for name, (offer, *_) in offers("methods").items():
        if offer.distribution == "mtlbench":
            marks = [pytest.mark.slow] if offer.module == "mtlbench_methods.peft_tuners" else []
            small = ",".join(f"{key}={value}" for key, value in load_method(name).example_settings.items())
            yield pytest.param(f"{name}[{small}]" if small else name, marks=marks)


@pytest.mark.parametrize("methods", [*first_party()])
def test_no_model_outlives_its_cell(machine: Machine, methods: str) -> None:
    record = machine.run(methods)
    assert record.status in ("ok", "skipped"), record.failure
    alive = models()
    assert len(alive) == 1 and alive[0] is machine.bench.backbone(record.cell).model, f"{len(alive)} models"


@pytest.mark.parametrize("methods", ["lora[rank=3]", "dora[rank=3]"])
def test_a_trained_cell_is_scored_where_a_second_copy_of_its_weights_has_no_room(
    machine: Machine, methods: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = machine.run(methods)

    def full(*args: object, **keywords: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 86.00 MiB.")

    monkeypatch.setattr(torch, "addmm", full)  # merging alone calls it
    record = machine.run(methods)
    assert record.status == "ok", record.failure
    assert record.scores == expected.scores and all(record.guards.values())
    assert record.notes["merging"] == "memory ran out: scored without merging" and "merging" not in expected.notes
    assert record.costs is not None and record.costs.inference_parameters > 0


def bytes_alive() -> int:
    """Of all tensors, each storage once."""
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(found.values())


class AfterStep:
    """What is so right after a step, while its gradients are there."""

    def __init__(self) -> None:
        self.bytes, self.tf32 = 0, False

    @hookimpl
    def mtlbench_step_finished(self, cell: Cell, step: int, row_losses: torch.Tensor, tasks: torch.Tensor) -> None:
        self.bytes = max(self.bytes, bytes_alive())
        self.tf32 = torch.backends.cuda.matmul.allow_tf32


def test_training_of_all_weights_holds_sixteen_bytes_for_each(machine: Machine) -> None:
    """Value, gradient and two moments, as the forecast has it, beside the frozen backbone."""
    machine.run("base")
    gc.collect()
    before, seen = bytes_alive(), AfterStep()
    record = machine.run("full", seen, evals_per_run=0)
    assert record.status == "ok" and record.costs is not None
    each = (seen.bytes - before) / record.costs.trainable_parameters
    assert 15 < each < 18, each


def test_float16_and_tf32_are_of_the_protocol(machine: Machine) -> None:
    plain, seen = machine.run("lora[rank=2]", AfterStep()), AfterStep()
    record = machine.run("lora[rank=2]", seen, dtype="float16", tf32=True, steps=16)
    assert record.status == "ok" and all(record.guards.values()), record.failure
    assert record.provenance["dtype"] == "torch.float16" and record.key != plain.key
    assert seen.tf32 and not torch.backends.cuda.matmul.allow_tf32, "set in the cell alone"
    exact = replace(record.cell.protocol, dtype="auto", tf32=False, steps=WORDS["steps"])
    assert exact.hash() == plain.cell.protocol.hash(), "without it keys are those of earlier versions"


PEAKS = """
import json, sys
from pathlib import Path
from typing import Any
from test_memory_of_cells import Machine
machine = Machine(Path(sys.argv[1]), model="demo")
found = [machine.run(methods).costs.peak_memory for methods in json.loads(sys.argv[2])]
print("PEAKS", json.dumps(found))
"""


def test_the_peak_is_the_same_alone_and_after_a_larger_cell(tmp_path: Path) -> None:
    """The first cell of a process also loads code, so two cells of one kind come first."""
    methods = ["lora", "lora[rank=4]", "full", "lora[rank=5]"]
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(tmp_path / "run"), json.dumps(methods)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("PEAKS")]
    _, alone, large, after = json.loads(line.removeprefix("PEAKS"))
    if alone is None:
        pytest.skip("this system cannot reset a peak of resident memory")
    assert large > alone, "or this shows nothing"
    assert abs(after - alone) < 0.3 * (large - alone), (alone, large, after)

"""Methods that fail, each in its own way, in one worker: each is named with its class and line, the next is unharmed."""

from __future__ import annotations

import sys

import pytest
from test_plugins import install

from mtlbench.api.record import Record
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_cell
from mtlbench.observers.events import Events
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.store import RunFolder

MODULE = """
from dataclasses import dataclass
from mtlbench import Method, hookimpl, nn


@dataclass(frozen=True, kw_only=True)
class Faulty(Method):
    name = "faulty"
    source = "a test"
    fault: str = "none"
    learning_rate: float | None = 1e-3

    def attach(self, model, setup):
        import torch

        weight = model.get_input_embeddings().weight
        if self.fault == "writes":
            weight.data.mul_(1.01)
        if self.fault == "writes_and_raises":
            weight.data.mul_(1.01)
            raise KeyError("lost")
        if self.fault == "leaves":
            raise SystemExit("bye")

        def make(name, linear):
            size = linear.in_features + (self.fault == "shape")
            parameters = {"down": torch.ones(4, size) * 0.01, "up": torch.zeros(linear.out_features, 4)}
            return nn.LowRankLinear(linear, parameters, factors, routing=setup.routing)

        nn.adapt(model, setup.target_modules, make)

    def loss(self, row_losses, tasks, model):
        return row_losses.mean() * (float("nan") if self.fault == "diverges" else 1.0)


def factors(parameters, rows):
    return nn.Factors(parameters["down"], parameters["up"])


@hookimpl
def mtlbench_methods():
    return [Faulty]
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """The record of each fault, all run one after another by one worker's bench, then that of a healthy method."""
    site = tmp_path_factory.mktemp("site")
    install(site, "faulty-pkg", points={"methods": {"faulty": "faulty_module"}}, modules={"faulty_module": MODULE})
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    folder.preflight()
    bench = Bench(device="cpu", threads=1, data="demo")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        for fault in ("writes", "none", "writes_and_raises", "lora", "leaves", "shape", "diverges"):
            method = "lora" if fault == "lora" else f"faulty[fault={fault}]"
            few = {"train_rows": 12, "eval_rows": 4, "steps": 2, "evals_per_run": 0, "max_length": 64}
            (cell,) = make_plan(Request(methods=method, tasks="glue/wnli", protocol=few)).cells
            found[fault] = run_cell(cell, bench=bench, folder=folder, events=Events({}))
    sys.modules.pop("faulty_module", None)
    return found


def failure(record: Record) -> tuple[str, str]:
    assert record.status == "failed" and record.failure is not None
    return record.failure.kind, record.failure.message


def test_after_a_method_that_writes_into_a_frozen_weight_the_next_cell_is_unharmed(records):
    kind, message = failure(records["writes"])
    assert kind == "plugin" and "'backbone_unchanged' did not hold for faulty[fault=writes]" in message
    assert records["none"].status == "ok" and all(records["none"].guards.values())
    kind, message = failure(records["writes_and_raises"])
    assert kind == "plugin" and message == "KeyError: 'lost' (faulty_module.py:21 in attach)"
    assert records["lora"].status == "ok" and all(records["lora"].guards.values())


def test_leaving_python_is_a_failure_of_the_method(records):
    assert failure(records["leaves"]) == (
        "plugin",
        "SystemExit: sys.exit('bye') was called (faulty_module.py:23 in attach)",
    )


def test_a_wrong_shape_in_a_layer_is_the_methods_fault(records):
    kind, message = failure(records["shape"])
    assert kind == "plugin" and ("shape" in message.lower() or "size" in message.lower())
    assert "mtlbench check" in records["shape"].failure.next_step


def test_a_loss_that_is_no_number_is_a_matter_of_the_request(records):
    kind, message = failure(records["diverges"])
    assert kind == "user" and "learning_rate below 0.001" in message
    assert "same command again" in records["diverges"].failure.next_step

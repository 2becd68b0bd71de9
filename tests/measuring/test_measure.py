"""What `mtlbench measure` measures, on the demo backbones."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from mtlbench.api.routing import Routing
from mtlbench.cli import cli
from mtlbench.measuring import conditions
from mtlbench.measuring.conditions import MachineWatch, hardware
from mtlbench.measuring.flops import analytic_flops, counted_flops
from mtlbench.measuring.measure import measure_row
from mtlbench.measuring.models import measured_backbone
from mtlbench.measuring.request import make_rows
from mtlbench.measuring.training import percentiles, timed
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import collate
from mtlbench.training.loss import row_losses

CPU = torch.device("cpu")
SMALL = {"steps": 4, "warmup": 1, "lengths": "12:20", "batch_size": 4, "tasks": 2, "serving": "1,3", "threads": 1}


@pytest.fixture(scope="module")
def found():
    rows = make_rows({**SMALL, "methods": "base,lora[rank=4],mtl_lora,peml[layers=1,prefix_length=4]"})
    return {row.method: measure_row(row) for row in rows}


def test_training_is_timed_counted_and_saved(found):
    for method in ("lora", "mtl_lora", "peml"):
        told = found[method]["training"]
        assert told["trains"] and told["step_seconds"]["n"] == 4
        assert 0 < told["step_seconds"]["p50"] <= told["step_seconds"]["p95"] <= told["step_seconds"]["p99"]
        assert 0 < told["tokens_per_second"] <= told["padded_tokens_per_second"] < 1.5 * told["tokens_per_second"]
        assert told["memory"]["resident"] > 2**20 and told["memory"]["allocated"] is None
        assert told["flops_counted"] > 0.5 * told["flops_backbone"]
        assert told["share_of_matrix_rate"] > 0
        assert told["adapter_bytes"] > 4 * told["kept_parameters"]
    assert found["base"]["training"] == {"trainable_parameters": 0, "kept_parameters": 0, "trains": False}
    peml = found["peml"]["training"]
    assert peml["trainable_parameters"] > peml["kept_parameters"], "the search drops candidates"


def test_a_finished_method_is_timed_as_it_is_deployed(found):
    for method, told in found.items():
        inference = told["inference"]
        assert inference["prompt_seconds"]["n"] == 30 and inference["batch_seconds"]["p50"] > 0, method
    added = {method: told["inference"]["added_parameters"] for method, told in found.items()}
    assert added["base"] == added["lora"] == 0, "merged"
    assert added["mtl_lora"] > 0 and 0 < added["peml"] < 100_000, "a task router, a constant prefix"


def test_each_way_of_serving_is_measured_for_each_number_of_tasks(found):
    ways = {m: [(s["way"], s["tasks"]) for s in told["serving"]] for m, told in found.items()}
    assert ways["mtl_lora"] == [("routed", 1), ("routed", 3)]
    assert ways["lora"] == [("separate", 1), ("unified", 1), ("separate", 3), ("unified", 3)]
    assert ways["peml"] == ways["base"] == [("unified", 1), ("unified", 3)]
    for served in found["lora"]["serving"]:
        switched = served["switching_seconds"] > 0
        assert switched == (served["way"] == "separate")
        assert served["mixed_seconds"] > 0 and served["one_by_one_seconds"] > 0
    held = [served["adapters_held"] for served in found["lora"]["serving"] if served["way"] == "separate"]
    assert held == [1, 3], "every task has an adapter of its own"


def test_a_result_says_where_and_under_what_it_was_measured(found):
    told = json.loads(json.dumps(found["lora"]))
    assert told["hardware"] == hardware(CPU) and told["hardware"]["threads"] == 1
    assert set(told["conditions"]) == {"others_cores", "load_average", "device_neighbours", "disturbed"}
    assert told["status"] == "ok" and told["versions"]["torch"] == torch.__version__


def test_a_refusal_is_a_result():
    (row,) = make_rows({**SMALL, "methods": "peml[where=enc,prefix_length=4]", "parts": "training"})
    told = measure_row(row)
    assert told["status"] == "refused" and "enc" in told["reason"]


@pytest.mark.parametrize("name", ["demo", "demo-t5"])
def test_operations_by_formula_are_those_that_run(name):
    backbone = measured_backbone(name, dtype=torch.float32, device=CPU)
    rows = [TokenRow(0, tuple(range(5, 25)), (7, 8)) for _ in range(3)]
    batch = collate(
        rows,
        architecture=backbone.architecture,
        pad_id=backbone.pad_id,
        decoder_start_id=backbone.decoder_start_id,
        device=CPU,
    )
    model, routing = backbone.fresh(), Routing()

    def forward():
        with torch.no_grad(), routing.of(batch.tasks):
            row_losses(model, batch, routing)

    forward_counted = counted_flops(forward)
    formula = analytic_flops(backbone, batch)
    assert 2 * forward_counted < formula < 3 * forward_counted, "twice forward, three times for attention"
    linear = counted_flops(lambda: torch.nn.functional.linear(torch.ones(3, 5), torch.ones(7, 5)))
    assert linear == 2 * 3 * 5 * 7


def test_products_in_place_are_counted():
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    assert counted_flops(lambda: torch.zeros(2, 4).addmm_(a, b)) == 2 * 2 * 3 * 4
    assert counted_flops(lambda: torch.zeros(5, 2, 4).baddbmm_(a.expand(5, 2, 3), b.expand(5, 3, 4))) == 5 * 48


def test_others_are_noticed(monkeypatch):
    busy = iter([100.0, 104.0])
    own = iter([10.0, 11.0])
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(conditions, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(conditions, "_process_seconds", lambda: next(own))
    monkeypatch.setattr(conditions.time, "perf_counter", lambda: next(clock))
    told = MachineWatch(CPU).conditions()
    assert told["others_cores"] == 1.5 and told["disturbed"], "4 busy seconds, 1 of them ours, in 2 seconds"


def test_calls_before_the_measurement_are_not_counted():
    calls: list[int] = []
    assert len(timed(lambda: calls.append(1), CPU, repeats=4, warmup=2)) == 4 and len(calls) == 6
    assert percentiles([1.0, 2.0, 3.0])["p50"] == 2.0


def test_the_command_measures_in_a_process_of_its_own_and_shows_the_folder(tmp_path):
    words = [
        "measure",
        "--methods",
        "lora[rank=4]",
        "--steps",
        "3",
        "--warmup",
        "1",
        "--lengths",
        "12",
        "--batch-size",
        "2",
    ]
    words += ["--tasks", "1", "--parts", "training", "--threads", "1", "--out", str(tmp_path / "m")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "lora[rank=4]" in done.output and "tokens/s" in done.output
    (path,) = (tmp_path / "m").glob("*.json")
    shown = CliRunner().invoke(cli, ["measure", "--show", "--out", str(tmp_path / "m")])
    assert shown.exit_code == 0 and "lora[rank=4]" in shown.output
    body = json.loads(path.read_text())
    body["hardware"]["processor"] = "another"
    path.with_name("other.json").write_text(json.dumps(body))
    refused = CliRunner().invoke(cli, ["measure", "--show", "--out", str(tmp_path / "m")])
    assert refused.exit_code != 0 and "different hardware" in str(refused.exception)

"""What stays warm in a worker: one backbone for all its adapters, tokens made once."""

from __future__ import annotations

import pytest

from mtlbench.api.cell import Cell, Protocol
from mtlbench.cells import bench as bench_module
from mtlbench.cells.bench import Bench
from mtlbench.data.choose import open_source
from mtlbench.data.source import find_task
from mtlbench.evaluation.evaluate import evaluate
from mtlbench.planning.settings import build
from mtlbench.plugins import load_suite
from mtlbench.testing import setup_for
from mtlbench.tokens import cache as tokenised

TASKS = ("glue/wnli", "glue/rte")


def cell(method):
    suites = {"glue": load_suite("glue")}
    data = open_source("demo", suites=suites).identity([find_task(suites, name) for name in TASKS])
    protocol = Protocol(data=data, max_length=96, train_rows=20, eval_rows=6)
    return Cell(method=method, tasks=TASKS, model="demo", protocol=protocol)


@pytest.fixture
def bench():
    return Bench(device="cpu", threads=None, data="demo")


def test_all_adapters_are_scored_on_one_loaded_backbone(bench, monkeypatch):
    loads = []
    load = bench_module.load_backbone
    monkeypatch.setattr(bench_module, "load_backbone", lambda *a, **k: loads.append(a) or load(*a, **k))
    scored = {}
    for name in ("lora", "mtl_lora", "prefix"):
        backbone = bench.backbone(cell(name))
        prepared = bench.prepared(cell(name), backbone)
        model = backbone.fresh()
        setup = setup_for(model, tasks=len(TASKS))
        build(name, {}).attach(model, setup)
        found = evaluate(
            model,
            backbone.tokenizer,
            architecture=backbone.architecture,
            lm_tasks=prepared.lm_tasks,
            task_ids={task: i for i, task in enumerate(prepared.tasks)},
            metrics={task: value.metrics for task, value in prepared.tasks.items()},
            routing=setup.routing,
            max_length=96,
            token_budget=512,
            eval_rows=6,
        )
        assert set(found.scores) == set(TASKS)
        scored[name] = {p.data_ptr() for p in model.parameters()}
    own = {p.data_ptr() for p in bench.backbone(cell("lora")).model.parameters()}
    assert len(loads) == 1
    assert all(own <= pointers for pointers in scored.values())
    assert backbone.checksum.holds()


def test_a_second_worker_tokenises_nothing(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path))
    first = bench.prepared(cell("lora"), bench.backbone(cell("lora")))
    made = []
    pairs = tokenised.training_pairs
    monkeypatch.setattr(tokenised, "training_pairs", lambda *a: made.append(a) or pairs(*a))
    other = Bench(device="cpu", threads=None, data="demo")
    again = other.prepared(cell("mtl_lora"), other.backbone(cell("mtl_lora")))
    assert list(again.rows) == list(first.rows)
    assert not made

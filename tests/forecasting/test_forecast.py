"""Parameters counted on the meta device are those of the real thing."""

from __future__ import annotations

import pytest
import torch

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import load_backbone
from mtlbench.cells.cost import trainable_count
from mtlbench.cells.rebuild import setup_of
from mtlbench.forecasting.memory import count_parameters, parameter_lines
from mtlbench.planning.settings import build


def cell_of(method, model="demo", **settings):
    tasks = ("glue/rte", "glue/sst2", "glue/cola")
    return Cell(method=method, settings=settings, tasks=tasks, model=model, protocol=Protocol(steps=10))


@pytest.mark.parametrize("model", ["demo", "demo-t5"])
def test_counts_equal_those_of_the_attached_backbone(model):
    backbone = load_backbone(model, dtype=torch.float32, attention="sdpa", device=torch.device("cpu"))
    for method in ("base", "full", "lora", "dora", "adalora", "mtl_lora", "cpoly", "peml", "preembedd+moelora"):
        cell = cell_of(method, model)
        real = backbone.fresh()
        setup = setup_of(
            real, cell, architecture=backbone.architecture, train_rows=[1, 1, 1], total_steps=10, routing=Routing()
        )
        build(method, {}).attach(real, setup)
        counts = count_parameters(cell)
        assert counts.training == trainable_count(real), method
        assert counts.backbone == backbone.parameters


def test_what_a_search_drops_is_told_apart():
    counts = count_parameters(cell_of("peml"))
    (line,) = parameter_lines([cell_of("peml")])
    assert counts.dropped > counts.training / 2
    assert f"{counts.training - counts.dropped:,} after training" in line
    assert count_parameters(cell_of("preembedd")).dropped == 0


def test_a_refusal_is_a_line_and_not_an_end():
    lines = list(parameter_lines([cell_of("mhr", splits=3), cell_of("lora")]))
    assert "refused" in lines[0] and "splits" in lines[0]
    assert lines[1].startswith("lora: trains ")

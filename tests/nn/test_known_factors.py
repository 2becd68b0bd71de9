"""Factors computed once for each task give what they give computed in every forward."""

from __future__ import annotations

import pytest
import torch
from tiny_backbones import tiny_model
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.nn.low_rank.fused import Factors
from mtlbench.nn.low_rank.layer import LowRankLinear, known_factors
from mtlbench.planning.settings import build
from mtlbench.testing import setup_for

TASKS = 3
ROUTED = {"mtl_lora": {"rank": 2}, "lora_st": {"rank": 1}, "poly": {"rank": 1}, "mhr": {"rank": 1}}
METHODS = {
    **ROUTED,
    "mtl_lora, diagonal": {"rank": 2, "lambda_format": "diagonal"},
    "mtl_lora, one up": {"rank": 2, "ups": 1},
    "moelora": {},
    "molora": {"gate": "task"},
    "cpoly": {"rank": 2},
    "cpoly, outputs": {"rank": 2, "mix": "outputs"},
    "adalora": {},
    "multilora": {},
    "lora": {},
}


def attached(name, *, tasks=TASKS):
    model = tiny_model(architecture="causal", vocabulary=340)
    settings = METHODS[name]
    setup = setup_for(model, tasks=tasks)
    build(name.partition(",")[0], settings).attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return model.eval(), setup.routing


def counted(model):
    """A list that grows with every call that makes factors."""
    calls = []
    for module in model.modules():
        if isinstance(module, LowRankLinear):

            def of(parameters, rows, make=module.factors_of):
                calls.append(rows)
                return make(parameters, rows)

            module.factors_of = of
    return calls


@torch.no_grad()
def logits(model, routing, *, length):
    ids = torch.randint(3, 340, (5, length), generator=torch.manual_seed(2))
    with routing.of(torch.tensor([2, 0, 0, 1, 2])):
        return model(input_ids=ids).logits


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("name", METHODS)
def test_mixed_tasks_get_the_same_from_known_factors(name, length):
    model, routing = attached(name)
    wanted = logits(model, routing, length=length)
    with known_factors(model, tasks=TASKS):
        torch.testing.assert_close(logits(model, routing, length=length), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ROUTED)
def test_nothing_is_computed_again_until_the_block_is_left(name):
    model, routing = attached(name)
    calls = counted(model)
    with known_factors(model, tasks=TASKS):
        made = len(calls)
        logits(model, routing, length=9)
        assert len(calls) == made > 0
    before = logits(model, routing, length=9)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.mul_(1.5)
    assert (logits(model, routing, length=9) - before).abs().max() > 1e-3


def one_linear(of, *, reads_input=False):
    routing = Routing()
    layer = LowRankLinear(nn.Linear(8, 8), {}, of, routing=routing, reads_input=reads_input).eval()
    return layer, routing


@pytest.mark.parametrize(("tasks", "kept"), [(4, True), (5, False)])
def test_factors_of_many_tasks_are_kept_up_to_half_of_the_weight(tasks, kept):
    """A down-projection of rank 1 for each task takes 8 of 64 elements."""
    table = torch.randn(tasks, 1, 8, generator=torch.manual_seed(3))
    layer, routing = one_linear(lambda _, rows: Factors(table[rows.tasks], torch.ones(8, 1)))
    x, ids = torch.randn(2, 6, 8), torch.tensor([1, 0])
    with torch.no_grad(), routing.of(ids):
        wanted = layer(x)
    with known_factors(layer, tasks=tasks), torch.no_grad(), routing.of(ids):
        assert (layer.known is not None) == kept
        torch.testing.assert_close(layer(x), wanted)
    assert layer.known is None


def test_factors_of_the_input_are_computed_as_ever():
    layer, _ = one_linear(
        lambda _, rows: Factors(torch.ones(2, 8), torch.ones(8, 2), gate=rows.x[..., :2]), reads_input=True
    )
    with known_factors(layer, tasks=2):
        assert layer.known is None

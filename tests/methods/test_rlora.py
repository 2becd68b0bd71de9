"""R-LoRA against a slow sum over heads; its start, and its dropout by head."""

from __future__ import annotations

import pytest
import torch
from attached import BUILDERS, attached, batch_for

from mtlbench.api.cell import Protocol
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.layer import BatchRows, LowRankLinear
from mtlbench.testing import setup_for, tiny_causal, toy_loop
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench_methods.rlora import RLora

METHOD = RLora(rank=3, heads=5, dropout=0.0)


def layers(model):
    return [m for m in model.modules() if isinstance(m, LowRankLinear)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_outputs_and_gradients_are_those_of_the_formula(dtype, tolerance):
    model, _ = attached(tiny_causal, METHOD)
    layer = layers(model.to(dtype))[-1]
    x = torch.randn(2, 7, layer.in_features, generator=torch.Generator().manual_seed(3)).to(dtype)
    scale = METHOD.alpha / 3**0.5

    def slow(x):
        shares = torch.softmax(x @ layer.router.T, dim=-1)
        weight = layer.weight - scale * layer.first_up @ layer.first_down
        y = torch.nn.functional.linear(x, weight, layer.bias)
        for head in range(5):
            y = y + scale * shares[..., head : head + 1] * (x @ layer.down.T @ layer.up[:, head].T)
        return y

    found = []
    for compute in (layer, slow):
        given = x.clone().requires_grad_()
        y = compute(given)
        found.append([y, *torch.autograd.grad(y.square().sum(), [given, layer.down, layer.up, layer.router])])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("build", BUILDERS)
def test_it_starts_as_the_backbone_where_the_router_is_uniform_and_when_switched_off(build):
    model = build(0)
    setup = setup_for(model)
    stock = label_logits(build(0), batch_for(setup), setup.routing)
    METHOD.attach(model, setup)
    begun = label_logits(model, batch_for(setup), setup.routing)
    assert not torch.allclose(begun, stock, atol=1e-6)
    METHOD.switch(model, on=False)
    torch.testing.assert_close(label_logits(model, batch_for(setup), setup.routing), stock)
    METHOD.switch(model, on=True)
    for layer in layers(model):
        layer.router.data.zero_()
    torch.testing.assert_close(label_logits(model, batch_for(setup), setup.routing), stock, rtol=1e-4, atol=1e-4)


def test_factors_are_drawn_as_large_as_the_repository_draws_them_and_heads_differ():
    model, _ = attached(tiny_causal, RLora(rank=4, gamma=16.0), noise=0.0)
    size = 4**0.25 / 4
    ups = torch.cat([layer.up.detach().flatten() * layer.out_features**0.5 for layer in layers(model)])
    downs = torch.cat([layer.down.detach().flatten() * layer.in_features**0.5 for layer in layers(model)])
    assert float(ups.std()) == pytest.approx(size, rel=0.1) and float(downs.std()) == pytest.approx(size, rel=0.1)
    layer = layers(model)[0]
    assert float((layer.up[:, 0] - layer.up[:, 1]).detach().abs().max()) > 0
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(4 * m.in_features + 5 * 4 * m.out_features + 5 * m.in_features for m in layers(model))


def test_each_head_drops_elements_by_itself_and_in_training_alone():
    model, _ = attached(tiny_causal, RLora(rank=64, heads=2, dropout=0.5))
    layer = layers(model)[0].train()
    x = torch.randn(1, 9, layer.in_features)
    gate = layer.factors(BatchRows(None, training=True, count=1, input=x)).gate
    first, second = gate[0, :, :128].split(64, dim=-1)
    dropped = [(part == 0) for part in (first, second)]
    for drops in dropped:
        assert 0.4 < float(drops.float().mean()) < 0.6
    assert bool((dropped[0] != dropped[1]).any())
    assert torch.equal(layer.eval()(x), layer(x))


def trained(**protocol):
    model = tiny_causal(0)
    setup = setup_for(model, tasks=3)
    method = RLora(dropout=0.5)
    method.attach(model, setup)
    fixed = {"steps": 3, "batch_size": 12, "learning_rate": 1e-2, "evals_per_run": 0}
    method.fit(model, toy_loop(model, method, setup, Protocol(**fixed, **protocol)))
    return trainable_state(model)


def test_micro_batches_drop_the_same_elements():
    whole, cut = trained(), trained(micro_batch=5)
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("settings", [{"heads": 0}, {"gamma": 0.0}, {"dropout": 1.0}])
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=rf"{name}={value}"):
        RLora(**settings)

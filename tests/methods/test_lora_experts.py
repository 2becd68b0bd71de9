"""HydraLoRA, LoRAMoE and MoLA against slow references written from their papers, and their auxiliary losses by hand."""

from __future__ import annotations

import pytest
import torch
from attached import BUILDERS, attached, batch_for
from torch.nn.functional import one_hot

from mtlbench import nn
from mtlbench.api.routing import RowSums
from mtlbench.errors import PluginError, RequestError
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.gradients import Gradients
from mtlbench_methods.hydralora import HydraLora
from mtlbench_methods.loramoe import LoraMoe, constraint
from mtlbench_methods.mola import MoLa, experts_of
from mtlbench_methods.molora import MoLora

HYDRA = HydraLora(dropout=0.0, rank=3, heads=5)
LORAMOE = LoraMoe(dropout=0.0, rank=3, experts=4, knowledge="toy/1")
MOLA = MoLa(dropout=0.0, rank=3, experts="2+5")


def adapted(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, LowRankLinear)}


def slow(layer, x, method):
    """The paper's sum over experts of one linear, token by token."""
    shares = torch.softmax(x @ layer.router.T, dim=-1)
    if isinstance(method, MoLa):
        least = shares.sort(dim=-1, descending=True).values[..., method.top_k - 1 : method.top_k]
        shares = torch.where(shares >= least, shares, 0.0)
        shares = shares / shares.sum(-1, keepdim=True)
    y = layer.base(x)
    for e in range(shares.shape[-1]):
        if isinstance(method, HydraLora):
            down, up = layer.down, layer.up[:, e]
        else:
            rows = slice(e * method.rank, (e + 1) * method.rank)
            down, up = layer.down[rows], layer.up[:, rows]
        y = y + method.alpha / method.rank * shares[..., e : e + 1] * (x @ down.T @ up.T)
    return y


@pytest.mark.parametrize("method", [HYDRA, LORAMOE, MOLA], ids=lambda m: m.name)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_outputs_and_gradients_are_those_of_the_formula(method, dtype, tolerance):
    model, _ = attached(tiny_causal, method)
    layer = model.to(dtype).model.layers[1].mlp.down_proj
    x = torch.randn(2, 7, layer.in_features, generator=torch.Generator().manual_seed(3)).to(dtype)
    found = []
    for compute in (layer, lambda x: slow(layer, x, method)):
        given = x.clone().requires_grad_()
        y = compute(given)
        parameters = [layer.down, layer.up, layer.router]
        found.append([y, *torch.autograd.grad(y.square().sum(), [given, *parameters])])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("build", BUILDERS)
def test_parameters_are_as_many_as_the_formulas_say(build):
    def count(method):
        model, setup = attached(build, method)
        shapes = {name: setup.shapes[name] for name in adapted(model)}
        return sum(p.numel() for p in model.parameters() if p.requires_grad), shapes

    found, shapes = count(HYDRA)
    assert found == sum(3 * wide + 5 * 3 * out + 5 * wide for out, wide in shapes.values())
    assert not [name for name in shapes if "attn" in name.lower() or "attention" in name.lower()]
    found, shapes = count(LORAMOE)
    assert found == sum(4 * (3 * wide + 3 * out + wide) for out, wide in shapes.values())
    found, shapes = count(MOLA)
    experts = experts_of(tuple(shapes), "2+5")
    assert found == sum(experts[name] * (3 * wide + 3 * out + wide) for name, (out, wide) in shapes.items())


def test_higher_layers_have_more_experts_in_each_stack():
    names = setup_for(tiny_seq2seq(0)).target_modules
    found = experts_of(names, "2+5")
    assert {found[name] for name in names if ".block.0." in name} == {2}
    assert {found[name] for name in names if ".block.1." in name} == {5}
    many = tuple(f"model.layers.{at}.mlp.up_proj" for at in range(32))
    assert [*experts_of(many, "2+4+6+8").values()] == [2] * 8 + [4] * 8 + [6] * 8 + [8] * 8


def test_a_balance_loss_is_one_for_experts_used_alike_and_their_number_for_one_alone():
    def of(shares, top_k=1):
        shares = torch.tensor(shares)
        report = nn.routing_report(shares, shares.topk(top_k, dim=-1).indices)
        return float(nn.load_balance(report, torch.ones(len(shares))))

    assert of([[0.75, 0.25], [0.75, 0.25]]) == pytest.approx(2 * 0.75), "f = (1, 0), P = (0.75, 0.25)"
    assert of([[0.75, 0.25], [0.25, 0.75]]) == pytest.approx(1.0)
    assert of([[1.0, 0.0, 0.0]]) == pytest.approx(3.0)
    assert of([[0.6, 0.3, 0.1]], top_k=2) == pytest.approx(3 * (0.5 * 0.6 + 0.5 * 0.3))


def test_the_constraint_pulls_the_kinds_apart():
    even = RowSums(torch.tensor([[2.0, 2.0], [4.0, 4.0]]), torch.tensor([4.0, 8.0]))
    knowledge = torch.tensor([True, False])
    assert float(constraint(even, knowledge, delta=0.0)) == pytest.approx(0.0)
    # Z = [[0.55, 0.45], [0.45, 0.55]]: variance 4 * 0.05^2 / 3, mean 0.5
    assert float(constraint(even, knowledge, delta=0.1)) == pytest.approx(4 * 0.0025 / 3 / 0.25)
    apart = RowSums(torch.tensor([[0.45, 0.55], [0.55, 0.45]]), torch.ones(2))
    assert float(constraint(apart, knowledge, delta=0.1)) < float(constraint(even, knowledge, delta=0.1))


def official(method, shares, knowledge):
    """The auxiliary loss as the repositories write it, from the shares ``[rows, length, experts]`` by linear."""
    if isinstance(method, LoraMoe):
        total = 0.0
        for share in shares.values():
            half, experts = share.shape[-1] // 2, share.shape[-1]
            kind = torch.tensor([[k] * half + [not k] * (experts - half) for k in knowledge])
            z = (share.sum(1) * torch.where(kind, 1 + method.delta, 1 - method.delta)).flatten()
            total = total + z.var() / (z.mean() ** 2 + 1e-10)
        return method.balance * total
    layers = {}
    for name, share in shares.items():
        layers.setdefault(name.split(".")[2], []).append(share.flatten(0, 1))
    total = 0.0
    for parts in layers.values():
        share = torch.cat(parts)
        counts = one_hot(share.topk(method.top_k, dim=-1).indices.flatten(), share.shape[-1]).sum(0)
        total = total + (counts / counts.sum() * share.mean(0)).sum() * share.shape[-1]
    return method.balance * total


@pytest.mark.parametrize("method", [LORAMOE, MOLA], ids=lambda m: m.name)
def test_the_loss_of_a_step_has_the_official_term_where_no_row_is_padded(method):
    model, setup = attached(tiny_causal, method)
    batch = batch_for(setup, [TokenRow(task, tuple(range(20 + task, 27 + task)), (5, 6)) for task in (0, 1, 2, 1)])
    shares = {}
    for name, layer in adapted(model).items():
        layer.register_forward_pre_hook(
            lambda layer, args, name=name: shares.__setitem__(name, torch.softmax(args[0] @ layer.router.T, -1))
        )
    gradients = Gradients(model=model, method=method, routing=setup.routing, autocast=None)
    with setup.routing.of(batch.tasks):
        model(**batch.inputs)
    want = official(method, dict(shares), [False, True, False, True])
    loss, losses, _ = gradients.step([batch])
    assert float((loss - losses.mean()).detach()) == pytest.approx(float(want.detach()), rel=1e-4)
    assert float(want.detach()) > 1e-4


def test_a_token_gate_has_no_standard_form(tmp_path):
    for method in (HYDRA, LORAMOE, MOLA):
        model, _ = attached(tiny_causal, method)
        with pytest.raises(PluginError, match="standard peft checkpoint"):
            method.export(model, tmp_path)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (HydraLora, {"heads": 0}),
        (LoraMoe, {"experts": 3, "knowledge": "toy/1"}),
        (LoraMoe, {"delta": 1.0}),
        (LoraMoe, {"balance": -1.0}),
        (MoLa, {"experts": "2+x"}),
        (MoLa, {"top_k": 0}),
        (MoLora, {"balance": float("inf")}),
    ],
)
def test_a_bad_setting_is_named_with_its_value(make, settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(RequestError, match=name) as caught:
        make(**settings)
    assert str(value) in str(caught.value)


def test_unknown_knowledge_tasks_are_refused_with_the_known_ones():
    reason = LoraMoe(knowledge="toy/1+glue/rte").refuse(setup_for(tiny_causal(0), tasks=2))
    assert reason is not None and "glue/rte" in reason and "toy/0, toy/1" in reason

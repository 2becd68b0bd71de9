"""MixLoRA against a slow sum over whole experts, and its balance loss as the repository writes it."""

from __future__ import annotations

import pytest
import torch
from attached import BUILDERS, attached, batch_for
from torch.nn.functional import one_hot

from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.expert_block import ExpertBlock
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.gradients import Gradients
from mtlbench_methods.mixlora import MixLora

METHOD = MixLora(rank=3, experts=4, top_k=2, dropout=0.0, balance=0.3)


def blocks(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, ExpertBlock)}


def linears(block):
    """The names of the first one or two projections, and the last: of a Llama, a T5 1.1, a T5."""
    if hasattr(block, "wi"):
        return "wi", None, "wo"
    return ("gate_proj", "up_proj", "down_proj") if hasattr(block, "gate_proj") else ("wi_0", "wi_1", "wo")


def plain_seq2seq(seed):
    """As the first T5: without a gate."""
    return tiny_seq2seq(seed, feed_forward_proj="relu")


def slow(block, x, method):
    """Every expert as a whole block, weighted where it is one of the token's choices."""
    gate, up, down = linears(block)

    def updated(name, e, given):
        rows = slice(e * method.rank, (e + 1) * method.rank)
        low, high = getattr(block, f"{name}_A")[rows], getattr(block, f"{name}_B")[:, rows]
        return getattr(block, name)(given) + method.alpha / method.rank * (given @ low.T @ high.T)

    shares = torch.softmax(x @ block.router.T, dim=-1)
    least = shares.sort(dim=-1, descending=True).values[..., method.top_k - 1 : method.top_k]
    kept = torch.where(shares >= least, shares, 0.0)
    kept = kept / kept.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for e in range(method.experts):
        product = block._activation(updated(gate, e, x))
        product = product if up is None else product * updated(up, e, x)
        y = y + kept[..., e : e + 1] * updated(down, e, product)
    return y


@pytest.mark.parametrize("build", [*BUILDERS, plain_seq2seq])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_outputs_and_gradients_are_those_of_whole_experts(build, dtype, tolerance):
    model, setup = attached(build, METHOD)
    name, block = [*blocks(model.to(dtype)).items()][-1]
    width = setup.shapes[f"{name}.{linears(block)[0]}"][1]
    x = torch.randn(2, 7, width, generator=torch.Generator().manual_seed(3)).to(dtype)
    found = []
    for compute in (block, lambda x: slow(block, x, METHOD)):
        given = x.clone().requires_grad_()
        y = compute(given)
        trained = [p for p in block.parameters() if p.requires_grad]
        found.append([y, *torch.autograd.grad(y.square().sum(), [given, *trained])])
    assert len(found[0]) == 2 + 2 * len([name for name in linears(block) if name]) + 1
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("build", [*BUILDERS, plain_seq2seq])
def test_parameters_are_as_many_as_the_formula_says(build):
    model, setup = attached(build, METHOD)
    want = 0
    for name, block in blocks(model).items():
        shapes = [setup.shapes[f"{name}.{linear}"] for linear in linears(block) if linear]
        want += 4 * 3 * sum(map(sum, shapes)) + 4 * shapes[0][1]
    attention = [n for n in setup.target_modules if "attn" in n.lower() or "attention" in n.lower()]
    want += sum(3 * sum(setup.shapes[name]) for name in attention)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == want


def test_the_loss_of_a_step_has_the_repository_s_term_where_no_row_is_padded():
    model, setup = attached(tiny_causal, METHOD)
    batch = batch_for(setup, [TokenRow(task, tuple(range(20 + task, 27 + task)), (5, 6)) for task in (0, 1, 2, 1)])
    logits = []
    for block in blocks(model).values():
        block.register_forward_pre_hook(lambda block, args: logits.append((args[0] @ block.router.T).flatten(0, 1)))
    gradients = Gradients(model=model, method=METHOD, routing=setup.routing, autocast=None)
    loss, losses, _ = gradients.step([batch])
    shares = torch.softmax(torch.cat(logits), dim=-1)
    chosen = one_hot(shares.topk(2, dim=-1).indices, 4).float()
    want = (chosen.mean(0) * shares.mean(0)).sum() * 4
    assert float((loss - losses.mean()).detach()) == pytest.approx(0.3 * float(want.detach()), rel=1e-4)
    router = model.model.layers[0].mlp.router
    with_balance = router.grad.clone()
    router.grad = None
    Gradients(model=model, method=MixLora(balance=0.0), routing=setup.routing, autocast=None).step([batch])
    assert not torch.allclose(router.grad, with_balance, rtol=1e-3)


def test_dropout_is_on_the_updates_alone_and_in_training_alone():
    model, _ = attached(tiny_causal, MixLora(dropout=0.5))
    block = model.model.layers[0].mlp
    x = torch.randn(1, 5, 32)
    quiet = block(x)
    assert torch.equal(block(x), quiet)
    block.train()
    assert not torch.equal(block(x), quiet)
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(block, f"{name}_B").zero_()
    noisy = block(x)
    torch.testing.assert_close(block.eval()(x), noisy)


def test_a_backbone_without_known_blocks_is_refused_with_what_would_do():
    model = tiny_causal(0)
    for layer in model.model.layers:
        layer.mlp = torch.nn.Sequential(layer.mlp.up_proj, torch.nn.ReLU(), layer.mlp.down_proj)
    with pytest.raises(RequestError, match=r"no feed-forward blocks.*mola"):
        METHOD.attach(model, setup_for(model))


@pytest.mark.parametrize("settings", [{"top_k": 9}, {"target": "all"}, {"experts": 0}, {"balance": -0.1}])
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=rf"{name}={value}"):
        MixLora(**settings)

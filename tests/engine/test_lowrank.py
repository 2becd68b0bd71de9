"""The low-rank core: gradients, dtypes, dropout, and what it keeps for the backward."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mtlbench.engine.batches import collate
from mtlbench.engine.loss import row_losses
from mtlbench.engine.lowrank import Factors, LowRankLinear, low_rank
from mtlbench.engine.routing import Routing
from mtlbench.testing import setup_for, tiny_causal, toy_rows
from mtlbench_methods.lora import Lora
from mtlbench_methods.mtl_lora import MtlLora


def drawn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def inputs(mix, dtype=torch.float64):
    torch.manual_seed(0)
    base = nn.Linear(5, 4, dtype=dtype).requires_grad_(False)
    shape = {"none": None, "gate": (3, 2), "matrix": (3, 6, 2)}[mix]
    up = drawn(4, 6 if mix == "matrix" else 2, dtype=dtype)
    m = drawn(*shape, dtype=dtype) if shape else None
    return base, drawn(3, 7, 5, dtype=dtype), drawn(2, 5, dtype=dtype), up, m


def plain(base, x, down, up, mix, scale):
    """The formula by ordinary operations."""
    hidden = x @ down.t()
    if mix is not None:
        hidden = hidden * mix[:, None] if mix.dim() == 2 else torch.einsum("nlr,nqr->nlq", hidden, mix)
    return base(x) + scale * hidden @ up.t()


@pytest.mark.parametrize("mix", ["none", "gate", "matrix"])
def test_it_is_the_formula_with_its_gradients(mix):
    base, x, down, up, m = inputs(mix)
    torch.testing.assert_close(low_rank(x, base, down, up, mix=m, scale=1.5), plain(base, x, down, up, m, 1.5))
    given = (x, down, up) if m is None else (x, down, up, m)
    assert torch.autograd.gradcheck(lambda x, down, up, m=None: low_rank(x, base, down, up, mix=m, scale=1.5), given)


@pytest.mark.parametrize("mix", ["none", "gate", "matrix"])
def test_a_bf16_backbone_keeps_float32_parameters(mix):
    base, x, down, up, m = inputs(mix, torch.float32)
    want = plain(base, x, down, up, m, 1.0)
    y = low_rank(x.bfloat16(), base.bfloat16(), down, up, mix=m)
    assert y.dtype == torch.bfloat16
    assert (y.float() - want).norm() < 0.02 * want.norm()
    y.float().sum().backward()
    assert down.grad.dtype == up.grad.dtype == x.grad.dtype == torch.float32


@pytest.mark.parametrize("mix", ["none", "gate", "matrix"])
def test_autocast_computes_in_bf16_and_gives_float32_gradients(mix):
    base, x, down, up, m = inputs(mix, torch.float32)
    plain(base, x, down, up, m, 1.0).sum().backward()
    want = [p.grad.clone() for p in (x, down, up) + (() if m is None else (m,))]
    for p in (x, down, up, m):
        if p is not None:
            p.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = low_rank(x, base, down, up, mix=m)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    for p, grad in zip((x, down, up, m), want, strict=False):
        assert p.grad.dtype == torch.float32
        assert (p.grad - grad).norm() < 0.1 * grad.norm()


@pytest.mark.parametrize("mix", ["none", "matrix"])
def test_dropout_reaches_the_low_rank_path_only_and_its_gradient_is_that_of_its_mask(mix):
    base, x, down, up, m = inputs(mix)

    def run(x, down, up, m=None):
        torch.manual_seed(3)  # one mask for every call
        return low_rank(x, base, down, up, mix=m, dropout=0.4)

    assert torch.autograd.gradcheck(run, (x, down, up) if m is None else (x, down, up, m))
    assert torch.equal(low_rank(x, base, down, up * 0, mix=m, dropout=0.4), base(x))
    with torch.no_grad():
        mean = torch.stack([low_rank(x, base, down, up, mix=m, dropout=0.4) for _ in range(4000)]).mean(0)
        want = plain(base, x, down, up, m, 1.0)
        assert (mean - want).abs().max() < 0.1 * (want - base(x)).abs().max()


def test_dropout_is_off_in_evaluation():
    base, x, down, up, _ = inputs("none")
    layer = LowRankLinear(base, {"a": down.detach(), "b": up.detach()}, lambda p: Factors(p["a"], p["b"]), dropout=0.5)
    torch.testing.assert_close(layer.eval()(x), plain(base, x, down, up, None, 1.0))
    assert not torch.allclose(layer.train()(x), plain(base, x, down, up, None, 1.0))


def test_the_wrapper_shows_what_models_read_of_a_linear():
    base = nn.Linear(5, 4)
    layer = LowRankLinear(base, {}, lambda p: Factors(torch.zeros(1, 5), torch.zeros(4, 1)))
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    assert (layer.in_features, layer.out_features) == (5, 4)


def test_a_mix_outside_the_routing_is_an_error():
    base, x, down, up, m = inputs("gate")
    layer = LowRankLinear(base, {}, lambda p: Factors(down, up, m), routing=Routing())
    with pytest.raises(RuntimeError, match="routing"):
        layer(x)


def kept_bytes(model, run):
    """Bytes of the distinct storages kept for the backward, the model's own parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = run()
    total = sum(kept.values())
    loss.backward()
    return total


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_more_is_kept_than_peft_keeps(dropout):
    setup = setup_for(tiny_causal(0))
    rows = toy_rows(tasks=3, rows=8)
    batch = collate(rows, architecture="causal", pad_id=0, decoder_start_id=None, device=torch.device("cpu"))
    models = {}
    for method in (Lora(rank=4, dropout=dropout), MtlLora(rank=4, dropout=dropout, target="all")):
        models[method.name] = tiny_causal(0)
        method.attach(models[method.name], setup)
    config = LoraConfig(r=4, lora_dropout=dropout, target_modules=[*setup.target_modules])
    models["peft"] = get_peft_model(tiny_causal(0), config).base_model.model
    kept = {
        name: kept_bytes(model.train(), lambda model=model: row_losses(model, batch, setup.routing).mean())
        for name, model in models.items()
    }
    assert kept["lora"] <= kept["peft"]
    if dropout:
        assert kept["lora"] < 0.8 * kept["peft"]
        assert kept["mtl_lora"] < kept["peft"]

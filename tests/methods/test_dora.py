"""DoRA: equal to the official layer and to peft on whole models, small in memory, merged and exported exactly."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import PluginError, RequestError
from mtlbench.nn.low_rank.dora import DoraLinear, MergedDoraLinear, row_norms
from mtlbench.nn.low_rank.dropout import dropout_mask, dropout_seed
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loss import row_losses
from mtlbench_methods.dora import Dora

GOLDENS = Path(__file__).parents[1] / "goldens"
BUILDERS = [tiny_causal, tiny_seq2seq]


def collated(setup, rows=None):
    return collate(
        rows or toy_rows(tasks=3, rows=2),
        architecture=setup.architecture,
        pad_id=0,
        decoder_start_id=0,
        device=torch.device("cpu"),
    )


def move(model, noise):
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += noise * torch.randn(p.shape, generator=draw)


def attached(build, *, noise=0.1, **settings):
    model = build(0)
    setup = setup_for(model)
    Dora(**{"rank": 4, **settings}).attach(model, setup)
    move(model, noise)
    return model, setup


def layer_of(out=24, into=32, rank=4, *, bias=True, dropout=0.0, dtype=torch.float32, noise=0.3):
    """A layer with every learned part moved; the weight in ``dtype``."""
    draw = torch.Generator().manual_seed(0)
    base = nn.Linear(into, out, bias=bias).requires_grad_(False)
    with torch.no_grad():
        for p in base.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    layer = DoraLinear(base.to(dtype), torch.randn(rank, into, generator=draw), scale=2.0, dropout=dropout)
    move(layer, noise)
    return layer


def plain(layer, x, keep=None):
    """The equation as it stands, by autograd; ``keep`` is the scaled dropout mask."""
    turned = layer.weight.float() + layer.scale * layer.up @ layer.down
    lengths = (layer.magnitude / turned.detach().norm(dim=1)).unsqueeze(1)
    low = x if keep is None else x * keep
    y = low @ (lengths * turned).t() + (x - low) @ layer.weight.float().t()
    return y if layer.bias is None else y + layer.bias.float()


@pytest.mark.parametrize("bias", [True, False])  # without one, other tensors are kept for the backward
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_output_and_every_gradient_equal_the_official_ones(dtype, tolerance, bias):
    with np.load(GOLDENS / "dora.npz") as file:
        arrays = dict(file)
    scale = json.loads((GOLDENS / "dora.json").read_text())["config"]["scaling"]

    def tensor(name):
        return torch.from_numpy(arrays[name]).to(dtype)

    def error(got, want):
        return np.abs(got.detach().double().numpy() - arrays[want]).max() / np.abs(arrays[want]).max()

    base = nn.Linear(12, 10, bias=bias).to(dtype).requires_grad_(False)
    base.weight.data = tensor("W")
    if bias:
        base.bias.data = tensor("b")
    layer = DoraLinear(base, tensor("param/A"), scale=scale)
    assert error(layer.magnitude, "m_init") < tolerance
    with torch.no_grad():
        layer.up.copy_(tensor("param/B"))
        layer.magnitude.copy_(tensor("param/m"))
    x = tensor("x").requires_grad_()
    y = layer(x)
    (y * tensor("cotangent")).sum().backward()
    y = y if bias else y + tensor("b")
    assert error(y, "y") < tolerance
    assert error(x.grad, "grad/x") < tolerance
    for mine, theirs in (("down", "A"), ("up", "B"), ("magnitude", "m")):
        assert error(layer.get_parameter(mine).grad, f"grad/{theirs}") < tolerance, mine


@pytest.mark.parametrize("build", BUILDERS)
def test_logits_and_gradients_equal_peft(build):
    ours, setup = attached(build, alpha=12.0)
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=0.0, use_dora=True, target_modules=[*setup.target_modules])
    theirs = get_peft_model(build(0), config)
    pairs = []
    for name, module in ours.named_modules():
        if isinstance(module, DoraLinear):
            other = theirs.get_submodule(f"base_model.model.{name}")
            magnitude = other.lora_magnitude_vector["default"].weight
            torch.testing.assert_close(magnitude.detach(), module.base.weight.norm(dim=1))
            pairs.append((module.down, other.lora_A["default"].weight))
            pairs.append((module.up, other.lora_B["default"].weight))
            pairs.append((module.magnitude, magnitude))
    assert len(pairs) == 3 * len(setup.target_modules)
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)
    batch = collated(setup)
    torch.testing.assert_close(ours(**batch.inputs).logits, theirs(**batch.inputs).logits, rtol=1e-5, atol=2e-5)
    for model in (ours, theirs.base_model.model):
        row_losses(model, batch, setup.routing).mean().backward()
    for mine, other in pairs:
        assert other.grad.norm() > 0
        assert (mine.grad - other.grad).norm() < 1e-4 * other.grad.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_the_equation(dropout, bias):
    layer = layer_of(bias=bias, dropout=dropout)
    other = copy.deepcopy(layer)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    again = x.detach().clone().requires_grad_()
    torch.manual_seed(4)
    y = layer.train()(x)
    keep = None
    if dropout:
        torch.manual_seed(4)
        keep = dropout_mask(x, dropout=dropout, seed=dropout_seed()) / (1 - dropout)
        assert 0.45 < float((keep > 0).float().mean()) < 0.75
    want = plain(other, again, keep)
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    (y * cotangent).sum().backward()
    (want * cotangent).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-4, atol=1e-4)
    for name, p in other.named_parameters():
        if p.requires_grad:
            got = layer.get_parameter(name).grad
            assert (got - p.grad).norm() < 1e-5 * p.grad.norm(), name
    torch.testing.assert_close(layer.eval()(x), plain(other, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_product_that_is_computed_again_gives_what_a_kept_one_gives(dropout):
    layer = layer_of(bias=False, dropout=dropout).train()
    draw = torch.Generator().manual_seed(2)
    gate, up = (torch.randn(3, 5, 32, generator=draw).requires_grad_() for _ in range(2))
    found = []
    for run in (lambda: layer.gated(nn.functional.silu, gate, up), lambda: layer(nn.functional.silu(gate) * up)):
        torch.manual_seed(4)
        y = run()
        wanted = [gate, up, *(p for p in layer.parameters() if p.requires_grad)]
        found.append((y, *torch.autograd.grad(y.square().sum(), wanted)))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_norm_is_that_of_the_changed_weight_and_a_row_of_zeros_stays_finite():
    layer = layer_of(dtype=torch.float64)
    turned = layer.weight + layer.scale * layer.up.double() @ layer.down.double()
    torch.testing.assert_close(
        row_norms(layer.weight, layer.parts, squares=layer.squares), turned.norm(dim=1), rtol=1e-13, atol=0
    )
    base = nn.Linear(6, 4, bias=False).requires_grad_(False)
    base.weight.data[1] = 0
    dead = DoraLinear(base, torch.randn(2, 6), scale=1.0)
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(dead(x), base(x))
    dead(x).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in dead.parameters() if p.requires_grad)


def kept(layer, x):
    """Elements that autograd keeps, parameters and the frozen weight aside."""
    own = {p.data_ptr() for p in layer.parameters()} | {layer.squares.data_ptr()}
    seen = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            seen[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x).sum()
    return sum(seen.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_input_one_output_and_rank_sized_tensors_are_kept(dropout):
    layer = layer_of(out=40, into=30, rank=3, dropout=dropout).train()
    x = torch.randn(4, 25, 30, requires_grad=True)
    assert kept(layer, x) == 100 * (30 + 40 + 3) + 40  # and one norm per row


def test_a_bf16_backbone_keeps_small_changes_of_length():
    layer = layer_of(dtype=torch.bfloat16, noise=0.0)
    x = torch.randn(8, 16, 32, generator=torch.Generator().manual_seed(5)).bfloat16()
    start = layer(x).detach().float()
    with torch.no_grad():
        layer.magnitude *= 1.005  # bf16 has 1 and 1.0078
    moved = layer(x).detach()
    assert moved.dtype == torch.bfloat16
    assert float((moved.float() * start).sum() / start.square().sum()) == pytest.approx(1.005, abs=1e-3)
    want = plain(layer, x.float())
    assert (moved.float() - want).norm() < 0.01 * want.norm()
    assert layer.down.dtype == layer.magnitude.dtype == layer.squares.dtype == torch.float32


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_autocast_gives_bf16_near_the_float32_gradients(weights):
    layer, exact = layer_of(dtype=weights), layer_of()
    x = torch.randn(8, 16, 32, generator=torch.Generator().manual_seed(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    (y * cotangent).sum().backward()
    (exact(x) * cotangent).sum().backward()
    for name in ("down", "up", "magnitude"):
        got, want = layer.get_parameter(name).grad, exact.get_parameter(name).grad
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.03 * want.norm(), name


@pytest.mark.parametrize("build", BUILDERS)
def test_merging_keeps_the_function_and_the_backbone(build):
    model, setup = attached(build)
    weights = {name: model.get_submodule(name).weight for name in setup.target_modules}
    before = {name: weight.clone() for name, weight in weights.items()}
    batch = collated(setup)
    logits = label_logits(model, batch, setup.routing)
    Dora(rank=4).finish(model)
    torch.testing.assert_close(label_logits(model, batch, setup.routing), logits, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    assert sum(isinstance(module, MergedDoraLinear) for module in model.modules()) == len(weights)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in build(0).parameters())


def test_a_merged_bias_is_kept():
    layer = layer_of(bias=True)
    x = torch.randn(2, 3, 32)
    torch.testing.assert_close(MergedDoraLinear(layer)(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("finished", [False, True])
def test_peft_reads_the_export(build, finished, tmp_path):
    method = Dora(rank=4, target="attention")
    model, setup = attached(build, target="attention")
    batch = collated(setup)
    logits = label_logits(model, batch, setup.routing)
    if finished:
        method.finish(model)
    method.export(model, tmp_path)
    loaded = PeftModel.from_pretrained(build(0), tmp_path)
    assert loaded.peft_config["default"].use_dora
    torch.testing.assert_close(label_logits(loaded.base_model.model, batch, Routing()), logits, rtol=1e-4, atol=1e-4)


def test_nothing_to_export_is_an_error(tmp_path):
    with pytest.raises(PluginError, match="no DoRA layer"):
        Dora().export(tiny_causal(0), tmp_path)


@pytest.mark.parametrize("build", BUILDERS)
def test_the_start_is_the_backbone(build):
    model, setup = attached(build, noise=0.0)
    batch = collated(setup)
    stock = label_logits(build(0), batch, Routing())
    torch.testing.assert_close(label_logits(model, batch, setup.routing), stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradients(build, dropout):
    model, setup = attached(build, dropout=dropout)
    other = copy.deepcopy(model)
    batch = collated(setup)
    for each, context in ((model, nullcontext()), (other, checkpointing(other))):
        each.train()
        torch.manual_seed(5)
        with context:
            row_losses(each, batch, setup.routing).mean().backward()
    want, got = (torch.cat([p.grad.flatten() for p in m.parameters() if p.requires_grad]) for m in (model, other))
    assert (got - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize("build", BUILDERS)
def test_beams_give_what_one_row_alone_gives(build):
    model, _ = attached(build, noise=0.3)
    ids = torch.tensor([[1, 11, 12, 13], [1, 14, 15, 16], [1, 13, 17, 18]])

    def generate(at):
        inputs = {"input_ids": ids[at], "attention_mask": torch.ones_like(ids[at])}
        return model.generate(**inputs, num_beams=3, max_new_tokens=5, min_new_tokens=5, do_sample=False)

    together = generate([0, 1, 2])
    for row in range(3):
        assert torch.equal(together[row], generate([row])[0])


def test_lengths_do_not_decay():
    model, setup = attached(tiny_causal)
    others, lengths = Dora().param_groups(model, 0.5)
    assert lengths["weight_decay"] == 0.0
    assert "weight_decay" not in others
    assert len(lengths["params"]) == len(setup.target_modules)
    assert len(others["params"]) == 2 * len(setup.target_modules)
    assert {p.dim() for p in lengths["params"]} == {1}


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": -1.0}, {"dropout": 1.0}, {"target": ""}])
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=rf"dora\[{name}={value}\].*must be"):
        Dora(**settings)

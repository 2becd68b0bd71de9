"""Houlsby and Pfeiffer adapters and BitFit: the layer of an official code base, where they stand, what they count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attached import BUILDERS, attached, batch_for
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.evaluation.packable import packable
from mtlbench.evaluation.readers import CausalReader, Seq2seqReader
from mtlbench.nn.blocks.adapters import Adapter, AdapterBank
from mtlbench.nn.blocks.shifts import TaskShift
from mtlbench.nn.blocks.sublayers import AfterLinear
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq
from mtlbench.training.checkpoints.state import trainable_names
from mtlbench_methods.adapters import Houlsby, Pfeiffer
from mtlbench_methods.bitfit import BitFit

GOLDENS = Path(__file__).parents[1] / "goldens"
THEIRS = {
    "down": "down_sampler.weight",
    "down_bias": "down_sampler.bias",
    "up": "up_sampler.weight",
    "up_bias": "up_sampler.bias",
}


def error(got, want):
    return np.abs(got.detach().double().numpy() - want).max() / np.abs(want).max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_outputs_and_gradients_equal_the_official_adapter(dtype, tolerance):
    """The one of HyperFormer's code, whose layer norm all tasks share."""
    with np.load(GOLDENS / "hyperformer.npz") as loaded:
        arrays = {name.removeprefix("adapter/"): a for name, a in loaded.items() if name.startswith("adapter/")}
        x, cotangent = (torch.from_numpy(loaded[name]).to(dtype) for name in ("x", "R"))

    def stacked(theirs):
        return np.stack([arrays[f"param/adapters.{task}.{theirs}"] for task in "abc"])

    norm = {"norm_weight": "post_layer_norm.weight", "norm_bias": "post_layer_norm.bias"}
    bank = {mine: torch.from_numpy(stacked(theirs)).to(dtype) for mine, theirs in THEIRS.items()}
    bank |= {mine: torch.from_numpy(arrays[f"param/{theirs}"]).to(dtype).repeat(3, 1) for mine, theirs in norm.items()}
    adapter, routing = Adapter(AdapterBank(**bank), "gelu_new"), Routing()
    with routing.of(torch.zeros(len(x), dtype=torch.int64)):
        y = adapter(x, routing)
        (y * cotangent).sum().backward()
    assert error(y, arrays["y"]) < tolerance
    for mine, theirs in THEIRS.items():
        grad = adapter.get_parameter(mine).grad
        assert error(grad[0], arrays[f"grad/adapters.a.{theirs}"]) < tolerance, mine
        assert not grad[1:].any()
    for mine, theirs in norm.items():
        assert error(adapter.get_parameter(mine).grad.sum(0), arrays[f"grad/{theirs}"]) < tolerance, mine


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(("method", "places"), [(Houlsby(), 2), (Pfeiffer(), 1)], ids=["houlsby", "pfeiffer"])
def test_where_they_stand_and_what_they_count(build, method, places):
    model = build(0)
    method.attach(model, setup_for(model, tasks=5))
    stacks = 1 if build is tiny_causal else 2
    found = [module for module in model.modules() if isinstance(module, AfterLinear)]
    assert len(found) == stacks * 2 * places
    bottleneck = 32 // 16
    of_one = 2 * 32 * bottleneck + 32 + bottleneck
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 5 * of_one * len(found)


@pytest.mark.parametrize("method", [Houlsby(), Pfeiffer(), BitFit()], ids=lambda m: m.name)
@pytest.mark.parametrize("build", BUILDERS)
def test_rows_of_several_sequences_are_scored_together(build, method):
    model, setup = attached(build, method)
    reader = (CausalReader if build is tiny_causal else Seq2seqReader)(model.eval(), setup.routing, pad_id=0)
    assert packable(reader, max_length=64)


def test_one_for_all_tasks_needs_no_routing():
    for method in (Houlsby(per_task=False), BitFit(per_task=False)):
        model, _ = attached(tiny_causal, method)
        assert not method.task_routed
        assert model(input_ids=torch.tensor([[1, 12, 15]])).logits.shape == (1, 3, 97)


@pytest.mark.parametrize("build", BUILDERS)
def test_every_projection_and_norm_gets_a_bias_for_each_task(build):
    model = build(0)
    norms = sum(name.endswith("weight") and "norm" in name.lower() for name, _ in model.named_parameters())
    setup = setup_for(model, tasks=4)
    width = sum(rows for rows, _ in setup.shapes.values()) + 32 * norms
    BitFit().attach(model, setup)
    assert {name.rpartition(".")[2] for name in trainable_names(model)} == {"shift"}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4 * width


def qwen():
    config = Qwen2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).eval().requires_grad_(False)


def test_only_biases_that_are_there_where_none_is_to_be_added():
    model = qwen()
    BitFit(add_missing=False).attach(model, setup_for(model, tasks=1))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (32 + 16 + 16)
    assert {name.split(".")[-2] for name in trainable_names(model)} == {"q_proj", "k_proj", "v_proj"}
    with pytest.raises(RequestError, match="LlamaForCausalLM has no bias to train"):
        BitFit(add_missing=False).attach(tiny_causal(0), setup_for(tiny_causal(0)))


def test_a_shift_is_a_bias_of_the_linear():
    model = qwen()
    method, setup = BitFit(per_task=False), setup_for(model)
    method.attach(model, setup)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape))
    plain = qwen()
    for name, module in model.named_modules():
        if isinstance(module, TaskShift) and isinstance(module.base, nn.Linear):
            linear = plain.get_submodule(name)
            old = 0 if linear.bias is None else linear.bias
            linear.bias = nn.Parameter((old + module.shift[0]).detach())
    for name, module in list(model.named_modules()):
        if isinstance(module, TaskShift) and not isinstance(module.base, nn.Linear):
            plain.get_submodule(name).register_forward_hook(lambda m, i, y, s=module.shift[0]: y + s)
    batch = batch_for(setup)
    wanted = label_logits(plain, batch, Routing())
    torch.testing.assert_close(label_logits(model, batch, setup.routing), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (lambda: Houlsby(activation="tanh"), "activation must be relu, gelu, gelu_new or swish"),
        (lambda: Houlsby(reduction=0), "reduction must be"),
        (lambda: Pfeiffer(reduction=64).attach(tiny_seq2seq(0), setup_for(tiny_seq2seq(0))), "Take at most 32"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(method, said):
    with pytest.raises(RequestError, match=said):
        method()

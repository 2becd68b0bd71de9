"""Layers that compute together give what the layers one by one give, and keep less."""

from __future__ import annotations

import copy
import gc
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.nn.low_rank.siblings import _GATED, GatedBlock, siblings
from mtlbench.planning.settings import build
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.gradients import Gradients, checkpointing
from mtlbench.training.loss import row_losses

BUILDERS = [tiny_causal, tiny_seq2seq]


def attached(build_model, method="mtl_lora", **settings):
    model = build_model(0)
    setup = setup_for(model)
    build(method, {"rank": 4, "target": "all", "dropout": 0.0, **settings}).attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.3 * torch.randn(p.shape, generator=draw)
    return model, setup


def one_by_one(model, setup):
    """The same layers and blocks, none of them together."""
    alone = copy.deepcopy(model)
    for module in alone.modules():
        if isinstance(module, LowRankLinear):
            module.shared, module.routing = None, setup.routing
        if isinstance(module, GatedBlock):
            module.forward = lambda x, m=module: nn.Module.__call__(
                getattr(m, m._names[2]), m._activation(getattr(m, m._names[0])(x)) * getattr(m, m._names[1])(x)
            )
    return alone


def batch_of(setup):
    device = torch.device("cpu")
    rows = toy_rows(tasks=3, rows=2)
    return collate(rows, architecture=setup.architecture, pad_id=0, decoder_start_id=0, device=device)


@pytest.mark.parametrize("build_model", BUILDERS)
@pytest.mark.parametrize("method", ["lora", "mtl_lora"])
def test_losses_and_gradients_are_those_of_the_layers_one_by_one(build_model, method):
    model, setup = attached(build_model, method)
    model.double()
    alone = one_by_one(model, setup)
    assert sum(isinstance(m, GatedBlock) for m in model.modules()) > 0
    assert sum(isinstance(m, LowRankLinear) and m.shared is not None for m in model.modules()) > 0
    batch = batch_of(setup)
    losses = []
    for each in (model, alone):
        each.train()
        with setup.routing.of(batch.tasks):
            losses.append(row_losses(each, batch, setup.routing))
            losses[-1].mean().backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        if p.requires_grad:
            assert (p.grad - q.grad).norm() <= 2e-6 * q.grad.norm(), name


@pytest.mark.parametrize("build_model", BUILDERS)
def test_queries_of_cross_attention_stand_alone(build_model):
    model, _ = attached(build_model)
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            members = 0 if module.shared is None else len(module.shared.members)
            last = name.rpartition(".")[2]
            if "EncDecAttention" in name:
                assert members == (2 if last in ("k", "v") else 0)
            elif last in ("q", "k", "v", "q_proj", "k_proj", "v_proj"):
                assert members == 3
            else:
                assert members == (0 if last in ("o", "wo", "o_proj", "down_proj") else 2)


def test_only_adapted_siblings_are_together():
    assert siblings(["a.q_proj", "a.v_proj", "b.q_proj", "b.o_proj"]) == [["a.q_proj", "a.v_proj"]]


@pytest.mark.parametrize("change", ["parameter", "input", "mode", "grad", "routing"])
def test_nothing_computed_ahead_is_used_after_a_change(change):
    model, setup = attached(tiny_causal)
    attention = model.model.layers[0].self_attn
    x, tasks = torch.randn(2, 3, 32), torch.tensor([0, 1])
    query, value = attention.q_proj, attention.v_proj
    with setup.routing.of(tasks):
        query(x)
        if change == "parameter":
            with torch.no_grad():
                value.up += 1
        if change == "input":
            x += 1
        if change == "mode":
            model.train()
    later = tasks.flip(0) if change == "routing" else tasks
    with setup.routing.of(later), torch.set_grad_enabled(change != "grad"):
        got = value(x)
        value.shared = None
        torch.testing.assert_close(got, value(x))
        assert got.requires_grad == (change != "grad")


def test_dropout_of_the_backbone_is_kept():
    model, setup = attached(lambda seed: tiny_seq2seq(seed, dropout_rate=0.5))
    block = next(m for m in model.modules() if isinstance(m, GatedBlock)).train()
    with setup.routing.of(torch.tensor([0, 1])):
        x = torch.randn(2, 3, 32)
        torch.manual_seed(0)
        one, two = block(x), block(x)
        assert not torch.allclose(one, two)
        torch.testing.assert_close(block.eval()(x), block(x))
        mean = torch.stack([block.train()(x) for _ in range(3000)]).mean(0)
        assert (mean - block.eval()(x)).abs().max() < 0.15 * mean.abs().max()


def test_known_blocks_compute_the_gated_product():
    """The table of block classes is right for every class of it that the installed transformers has."""
    import importlib

    from transformers import AutoConfig

    seen = []
    for name in _GATED:
        family = name.removesuffix("MLP").removesuffix("DenseGatedActDense").lower()
        try:
            module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        except ImportError:
            continue
        cls = getattr(module, name, None)
        if cls is None:
            continue
        config = AutoConfig.for_model(family)
        config = getattr(config, "text_config", config)
        for field, value in {"hidden_size": 8, "intermediate_size": 12, "d_model": 8, "d_ff": 12}.items():
            if hasattr(config, field):
                setattr(config, field, value)
        block = cls(config).eval()
        x = torch.randn(2, 3, 8)
        torch.testing.assert_close(GatedBlock(block)(x), block(x))
        assert [n for n, _ in GatedBlock(block).named_parameters()] == [n for n, _ in block.named_parameters()]
        seen.append(name)
    assert {"LlamaMLP", "Qwen3MLP", "Gemma3MLP", "T5DenseGatedActDense"} <= set(seen)


def test_an_activation_in_one_kernel_is_the_same_function():
    from transformers.activations import ACT2FN

    from mtlbench.nn.low_rank.fused import _ONE_KERNEL

    seen = set()
    for name in ("gelu_new", "silu", "gelu", "relu"):
        activation = ACT2FN[name]
        fast = _ONE_KERNEL.get(type(activation).__name__)
        if fast is not None:
            x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
            torch.testing.assert_close(fast(x), activation(x), rtol=1e-12, atol=1e-14)
            seen.add(name)
    assert seen == {"gelu_new"}


def graphs() -> list[torch.Tensor]:
    """Tensors that hold a graph, and with it the activations of a forward pass."""
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and thing.grad_fn is not None]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("method", ["lora", "mtl_lora"])
def test_memory_that_runs_out_between_projections_leaves_no_activations_behind(method, checkpointed):
    """Qwen3 normalises queries between the query and the key projection, which are computed together."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = Qwen3Config(vocab_size=97, num_key_value_heads=2, head_dim=8, max_position_embeddings=128, **sizes)
    model, setup = attached(lambda seed: Qwen3ForCausalLM(config).requires_grad_(False), method)
    gradients = Gradients(model=model, method=build(method, {}), routing=setup.routing, autocast=None)
    model.train()
    norm, calls = model.model.layers[1].self_attn.q_norm, 0

    def full(module, args):
        nonlocal calls
        calls += 1
        if calls == (2 if checkpointed else 1):
            raise torch.OutOfMemoryError("CUDA out of memory")

    before = len(graphs())
    handle = norm.register_forward_pre_hook(full)
    with checkpointing(model) if checkpointed else nullcontext():
        with pytest.raises(torch.OutOfMemoryError):
            gradients.step([batch_of(setup)])
        assert len(graphs()) == before
        handle.remove()
        gradients.step([batch_of(setup)])

"""HyperFormer and HyperFormer++: generated adapters against the official modules, and whole models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from attached import BUILDERS, attached, batch_for

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.evaluation.packable import packable
from mtlbench.evaluation.readers import CausalReader, Seq2seqReader
from mtlbench.nn.blocks.adapters import Adapter, adapter_forward
from mtlbench.nn.blocks.hypernet import ACTIVATION, Hypernet, StackHypernet
from mtlbench.nn.blocks.sublayers import AfterLinear, find_sublayers
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq
from mtlbench.training.loss import row_losses
from mtlbench_methods.hyperformer import Hyperformer, HyperformerPlusPlus

GOLDENS = Path(__file__).parents[1] / "goldens"
VARIANTS = {"hyperformer": False, "hyperformer_pp": True}
THEIR_BLOCKS = ("self_attention", "feed_forward")
"""In our order; their embedding of blocks has the other one."""
PROJECTION = {
    "layers": "layer_id_embeddings.weight",
    "inner.weight": "task_hypernet.task_embeding_generator.0.weight",
    "inner.bias": "task_hypernet.task_embeding_generator.0.bias",
    "outer.weight": "task_hypernet.task_embeding_generator.2.weight",
    "outer.bias": "task_hypernet.task_embeding_generator.2.bias",
    "norm_weight": "LayerNorm.weight",
    "norm_bias": "LayerNorm.bias",
}
GENERATED = {
    "down": "down_sampler_hyper_net.weight_generator.0",
    "down_bias": "down_sampler_hyper_net.bias_generator.0",
    "up": "up_sampler_hyper_net.weight_generator.0",
    "up_bias": "up_sampler_hyper_net.bias_generator.0",
    "norm_weight": "post_layernorm_hypernet.weight_generator",
    "norm_bias": "post_layernorm_hypernet.bias_generator",
}
BANK = ("down_w", "down_b", "up_w", "up_b", "ln_w", "ln_b")


def golden():
    with np.load(GOLDENS / "hyperformer.npz") as arrays:
        return json.loads((GOLDENS / "hyperformer.json").read_text())["config"], dict(arrays)


def names_of(shared):
    """Our parameters of a stack to theirs."""
    found = dict(PROJECTION)
    if shared:
        found["blocks"] = "adapters_block_type.weight"
    for at, block in enumerate(("",) if shared else tuple(f"{block}_" for block in THEIR_BLOCKS)):
        for mine, theirs in GENERATED.items():
            for part in ("weight", "bias"):
                found[f"generators.{at}.{mine}.{part}"] = f"{block}{theirs}.{part}"
    return found


def turned(name, array):
    return array[::-1].copy() if name == "blocks" else array


def hypernet(variant, dtype):
    config, arrays = golden()
    stack = StackHypernet(
        layers=config["layers"],
        width=config["d"],
        bottleneck=config["bottleneck"],
        task_width=config["task_embedding_dim"],
        hidden=config["task_hidden_dim"],
        projected=config["projected_task_embedding_dim"],
        shared=VARIANTS[variant],
        draw=torch.Generator(),
    )
    tasks = np.stack([arrays[f"{variant}/task/param/task_to_embeddings.{task}"] for task in config["tasks"]])
    network = Hypernet(torch.from_numpy(tasks), {"stack": stack}).to(dtype)
    ours = names_of(VARIANTS[variant])
    assert ours.keys() == dict(stack.named_parameters()).keys()
    with torch.no_grad():
        for mine, theirs in ours.items():
            stack.get_parameter(mine).copy_(torch.from_numpy(turned(mine, arrays[f"{variant}/param/{theirs}"])))
    return network, stack, config, arrays, ours


def error(got, want):
    return np.abs(got.detach().double().numpy() - want).max() / max(np.abs(want).max(), 1e-30)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_weights_outputs_and_every_gradient_equal_the_official_ones(variant, dtype, tolerance):
    network, stack, config, arrays, ours = hypernet(variant, dtype)
    task = config["tasks"].index("b")
    x, cotangent = (torch.from_numpy(arrays[name]).to(dtype) for name in ("x", "R"))
    routing = Routing()
    probe = torch.zeros((), dtype=dtype)
    for layer in range(config["layers"]):
        for block, theirs in enumerate(THEIR_BLOCKS):
            bank = network.bank("stack", layer, block)
            at = f"{variant}/layer{layer}/{theirs}"
            for part, value in zip(BANK, bank, strict=True):
                assert error(value[task], arrays[f"{at}/{part}"]) < tolerance, (at, part)
            with routing.of(torch.full((len(x),), task)):
                y = adapter_forward(x, bank, routing, ACTIVATION)
            assert error(y, arrays[f"{at}/y"]) < tolerance, at
            probe = probe + (layer + 1) * (-1 if theirs == "self_attention" else 1) * (y * cotangent).sum()
    probe.backward()
    for mine, theirs in ours.items():
        grad = turned(mine, arrays[f"{variant}/grad/{theirs}"])
        assert error(stack.get_parameter(mine).grad, grad) < tolerance, mine
    assert error(network.tasks.grad[task], arrays[f"{variant}/task/grad/task_to_embeddings.b"]) < tolerance
    assert not network.tasks.grad[[0, 2]].any()
    counted = config["variants"][variant]
    assert sum(p.numel() for p in stack.parameters()) == counted["num_params_one_stack"]
    assert network.tasks.numel() == counted["num_params_task"]


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (HyperformerPlusPlus(norms=False), 5_163_440),
        (HyperformerPlusPlus(norms=False, reduction=16), 9_958_880),
        (Hyperformer(norms=False), 10_241_760),
        (Hyperformer(norms=False, reduction=16), 19_832_640),
    ],
    ids=["pp-32", "pp-16", "32", "16"],
)
def test_as_many_parameters_as_the_official_modules_on_t5_base(method, count):
    """Of T5-base with 8 tasks; its depth and width are what counts."""
    model = tiny_seq2seq(d_model=768, num_layers=12, num_decoder_layers=12, d_ff=8, d_kv=2, num_heads=2)
    method.attach(model, setup_for(model, tasks=8))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("method", [Hyperformer(reduction=8), HyperformerPlusPlus(reduction=8)], ids=lambda m: m.name)
def test_adapters_stand_behind_self_attention_and_feed_forward_blocks(build, method):
    model, setup = attached(build, method)
    ends = {name for name, module in model.named_modules() if isinstance(module, AfterLinear)}
    if build is tiny_causal:
        assert ends == {f"model.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn.o_proj", "mlp.down_proj")}
    else:
        encoder = {
            f"encoder.block.{i}.layer.{part}" for i in (0, 1) for part in ("0.SelfAttention.o", "1.DenseReluDense.wo")
        }
        decoder = {
            f"decoder.block.{i}.layer.{part}" for i in (0, 1) for part in ("0.SelfAttention.o", "2.DenseReluDense.wo")
        }
        assert ends == encoder | decoder, "none behind the attention to the encoder"
    batch, ids = batch_for(setup), setup.routing
    before = label_logits(model, batch, ids)
    method.finish(model)
    torch.testing.assert_close(label_logits(model, batch, ids), before, atol=1e-5, rtol=1e-5)
    assert not hasattr(model, "mtlbench_hypernet")
    assert all(isinstance(model.get_submodule(name).after, Adapter) for name in ends)


@pytest.mark.parametrize("build", BUILDERS)
def test_layer_norms_train_and_the_backbones_own_stay(build):
    model = build(0)
    norms = {name: p for name, p in model.named_parameters() if "norm" in name.lower()}
    own = {name: p.detach().clone() for name, p in norms.items()}
    setup = setup_for(model)
    Hyperformer(reduction=8).attach(model, setup)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "hypernet" not in name}
    assert trained == set(norms)
    with torch.no_grad():
        for name in trained:
            model.get_parameter(name).add_(1.0)
    assert all(torch.equal(norms[name], own[name]) for name in own)
    frozen = build(0)
    Hyperformer(reduction=8, norms=False).attach(frozen, setup_for(frozen))
    assert {n for n, p in frozen.named_parameters() if p.requires_grad and "hypernet" not in n} == set()


def test_norms_of_a_16_bit_backbone_are_rounded_at_the_end():
    model = tiny_causal(0).bfloat16()
    method = Hyperformer(reduction=8)
    setup = setup_for(model)
    method.attach(model, setup)
    assert model.model.norm.weight.dtype == torch.float32
    batch = batch_for(setup)
    before = label_logits(model, batch, setup.routing)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = row_losses(model, batch, setup.routing).mean()
    loss.backward()
    assert model.model.norm.weight.grad.dtype == torch.float32 and model.model.norm.weight.grad.any()
    method.finish(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(label_logits(model, batch, setup.routing).float(), before.float(), atol=0.2, rtol=0.05)


@pytest.mark.parametrize("build", BUILDERS)
def test_rows_of_several_sequences_are_scored_together(build):
    model, setup = attached(build, HyperformerPlusPlus(reduction=8))
    reader = (CausalReader if build is tiny_causal else Seq2seqReader)(model.eval(), setup.routing, pad_id=0)
    assert packable(reader, max_length=64)


def test_embeddings_biases_and_norms_have_no_weight_decay():
    model, _ = attached(tiny_causal, HyperformerPlusPlus(reduction=8))
    decayed, others = HyperformerPlusPlus().param_groups(model, 1e-3)
    kept = {id(p) for p in others["params"]}
    assert others["weight_decay"] == 0.0 and "weight_decay" not in decayed
    network = model.mtlbench_hypernet
    stack = network.stacks["model_layers"]
    assert {id(network.tasks), id(stack.layers), id(stack.blocks), id(model.model.norm.weight)} <= kept
    assert id(stack.inner.weight) not in kept and id(stack.inner.bias) in kept


def test_what_cannot_be_is_refused_with_the_reason():
    model = tiny_causal(0)
    with pytest.raises(RequestError, match=r"reduction=64\]: the backbone is 32 wide"):
        Hyperformer(reduction=64).attach(model, setup_for(model))
    with pytest.raises(RequestError, match="reduction must be a whole number of at least 1"):
        Hyperformer(reduction=0)
    names = ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.experts.0.down_proj"]
    assert [place.block for place in find_sublayers(names)] == [0, 1]
    with pytest.raises(RequestError, match="behind the self-attention and the feed-forward block"):
        find_sublayers([*names, "model.layers.0.mlp.experts.1.down_proj"])
    with pytest.raises(RequestError, match="Known are projections named o_proj"):
        find_sublayers(["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"])

"""LoRA on whole models: it is peft's, merges exactly, and exports what peft reads."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loss import row_losses
from mtlbench.training.optimizer import make_optimizer
from mtlbench_methods.base import Base
from mtlbench_methods.lora import Lora
from mtlbench_methods.lora_st import LoraSt

BUILDERS = [tiny_causal, tiny_seq2seq]


def batch_for(setup, rows=None):
    return collate(
        rows or toy_rows(tasks=3, rows=2),
        architecture=setup.architecture,
        pad_id=0,
        decoder_start_id=0,
        device=torch.device("cpu"),
    )


def attached(build, method, *, noise=0.1):
    """A model with the method attached and every trainable parameter moved."""
    model = build(0)
    setup = setup_for(model)
    method.attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += noise * torch.randn(p.shape, generator=draw)
    return model, setup


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("rslora", [False, True])
def test_logits_and_gradients_equal_peft(build, rslora):
    ours, setup = attached(build, Lora(rank=4, alpha=12.0, dropout=0.0, rslora=rslora))
    theirs = get_peft_model(
        build(0),
        LoraConfig(r=4, lora_alpha=12, lora_dropout=0.0, use_rslora=rslora, target_modules=[*setup.target_modules]),
    )
    pairs = []
    for name, module in ours.named_modules():
        if isinstance(module, LowRankLinear):
            other = theirs.get_submodule(f"base_model.model.{name}")
            pairs += [(module.down, other.lora_A["default"].weight), (module.up, other.lora_B["default"].weight)]
    assert len(pairs) == 2 * len(setup.target_modules)
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)
    batch = batch_for(setup)
    torch.testing.assert_close(ours(**batch.inputs).logits, theirs(**batch.inputs).logits, rtol=1e-5, atol=1e-5)
    for model in (ours, theirs.base_model.model):
        row_losses(model, batch, setup.routing).mean().backward()
    for mine, other in pairs:
        assert (mine.grad - other.grad).norm() < 1e-4 * other.grad.norm()
    assert pairs[0][0].grad.abs().max() > 0


@pytest.mark.parametrize("build", BUILDERS)
def test_merging_keeps_the_function_and_the_backbone(build):
    method = Lora(rank=4)
    model, setup = attached(build, method)
    weights = {name: model.get_submodule(name).weight for name in setup.target_modules}
    before = {name: weight.clone() for name, weight in weights.items()}
    batch = batch_for(setup)
    logits = label_logits(model, batch, setup.routing)
    method.finish(model)
    torch.testing.assert_close(label_logits(model, batch, setup.routing), logits, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    assert all(type(m) is not LowRankLinear for m in model.modules())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in build(0).parameters())


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("finished", [False, True])
def test_peft_reads_the_export(build, finished, tmp_path):
    method = Lora(rank=4, rslora=True, target="attention")
    model, setup = attached(build, method)
    batch = batch_for(setup)
    logits = label_logits(model, batch, setup.routing)
    if finished:
        method.finish(model)
    method.export(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = PeftModel.from_pretrained(build(0), tmp_path)
    torch.testing.assert_close(label_logits(loaded.base_model.model, batch, Routing()), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", BUILDERS)
def test_the_start_is_the_backbone_whatever_the_global_seed(build):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build(0)
        setup = setup_for(model, seed=7)
        Lora().attach(model, setup)
        states.append({name: p for name, p in model.named_parameters() if p.requires_grad})
        batch = batch_for(setup)
        assert torch.equal(label_logits(model, batch, setup.routing), label_logits(build(0), batch, Routing()))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    downs = [p for name, p in states[0].items() if name.endswith("q_proj.down") or name.endswith("q.down")]
    assert not torch.equal(downs[0], downs[1])


@pytest.mark.parametrize("build", BUILDERS)
def test_gradient_checkpointing_gives_the_same_gradients_with_dropout(build):
    model, setup = attached(build, Lora(rank=4, dropout=0.3))
    other = copy.deepcopy(model)
    batch = batch_for(setup)
    for each, context in ((model, nullcontext()), (other, checkpointing(other))):
        each.train()
        torch.manual_seed(5)
        with context:
            row_losses(each, batch, setup.routing).mean().backward()
    want, got = (torch.cat([p.grad.flatten() for p in m.parameters() if p.requires_grad]) for m in (model, other))
    assert (got - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize(
    ("target", "last"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("ffn", {"gate_proj", "up_proj", "down_proj"}),
        ("q_proj+up_proj", {"q_proj", "up_proj"}),
    ],
)
def test_targets(target, last):
    model, _ = attached(tiny_causal, Lora(target=target))
    adapted = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, LowRankLinear)}
    assert adapted == last


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"target": ""},
        {"target": "q proj"},
        {"b_rate_ratio": 0.0},
    ],
)
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=name) as caught:
        Lora(**settings)
    assert str(value) in str(caught.value)
    assert "must be" in str(caught.value)


def test_lora_plus_is_a_faster_rate_of_the_up_projections():
    model, setup = attached(tiny_causal, Lora(b_rate_ratio=16.0, dropout=0.0))
    row_losses(model, batch_for(setup), setup.routing).mean().backward()
    groups = Lora(b_rate_ratio=16.0).param_groups(model, 1e-3)
    optimizer = make_optimizer("sgd", groups, learning_rate=1.0, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer.step()
    for name, p in model.named_parameters():
        if name in before:
            rate = 16e-3 if name.endswith(".up") else 1e-3
            torch.testing.assert_close(p.detach(), before[name] - rate * p.grad)
    assert len(Lora().param_groups(model, 1e-3)) == 1


def test_the_rates_of_lora_plus_reach_the_tasks_of_lora_st():
    model, _ = attached(tiny_causal, LoraSt(b_rate_ratio=4.0))
    slow, fast = LoraSt(b_rate_ratio=4.0).param_groups(model, 1e-3)
    assert (slow["lr"], fast["lr"]) == (1e-3, 4e-3) and len(slow["params"]) == len(fast["params"]) > 0


def test_an_unknown_target_names_the_known_ones():
    with pytest.raises(RequestError, match=r"'qproj'.*q_proj"):
        attached(tiny_causal, Lora(target="qproj"))


def test_base_adds_nothing():
    model = tiny_causal(0)
    before = [name for name, _ in model.named_modules()]
    Base().attach(model, setup_for(model))
    Base().fit(model, None)
    assert [name for name, _ in model.named_modules()] == before
    assert not any(p.requires_grad for p in model.parameters())

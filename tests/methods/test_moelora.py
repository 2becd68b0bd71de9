"""MoELoRA on whole models: gates by task, per layer or shared, with one dropout mask or one per expert."""

from __future__ import annotations

import pytest
import torch
from attached import BUILDERS, attached, batch_for
from peft import PeftModel
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.skills import ExpertDropoutLinear
from mtlbench.testing import toy_rows
from mtlbench.training.loss import row_losses
from mtlbench_methods.moelora import MoeLora

SMALL = {"rank": 4, "experts": 2, "task_width": 6, "target": "all"}


@pytest.mark.parametrize("build", BUILDERS)
def test_a_shared_gate_is_one_gate(build):
    gates = {}
    for shared in (False, True):
        model, _ = attached(build, MoeLora(**SMALL, shared_gate=shared))
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        gates[shared] = sum(name.endswith(".gate") for name in names)
        adapted = sum(name.endswith(".down") for name in names)
    assert gates == {False: adapted, True: 1}


def test_gradients_of_a_shared_gate_come_from_every_layer():
    model, setup = attached(BUILDERS[0], MoeLora(**SMALL, shared_gate=True, dropout=0.0))
    row_losses(model, batch_for(setup), setup.routing).mean().backward()
    total = model.model.layers[0].self_attn.q_proj.gate.grad.clone()
    model.zero_grad()
    model.model.layers[0].self_attn.q_proj.gate.requires_grad_(True)
    alone = model.model.layers[1].mlp.down_proj
    alone.gate = nn.Parameter(alone.gate.detach().clone())
    row_losses(model, batch_for(setup), setup.routing).mean().backward()
    part = model.model.layers[0].self_attn.q_proj.gate.grad
    assert alone.gate.grad.abs().max() > 0
    torch.testing.assert_close(part + alone.gate.grad, total)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("build", BUILDERS)
def test_the_lora_that_a_task_sees_is_exported(build, shared, tmp_path):
    method = MoeLora(**SMALL, shared_gate=shared)
    model, setup = attached(build, method)
    batch = batch_for(setup, [row for row in toy_rows(tasks=3, rows=2) if row.task == 2])
    method.export(model, tmp_path, task=2)
    loaded = PeftModel.from_pretrained(build(0), tmp_path).base_model.model
    want = label_logits(model, batch, setup.routing)
    torch.testing.assert_close(label_logits(loaded, batch, Routing()), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", BUILDERS)
def test_a_mask_per_expert_changes_training_only(build):
    one, setup = attached(build, MoeLora(**SMALL, dropout=0.4))
    many, other = attached(build, MoeLora(**SMALL, dropout=0.4, masks="per_expert"))
    assert sum(isinstance(m, ExpertDropoutLinear) for m in many.modules()) == len(setup.target_modules)
    batch = batch_for(setup)
    want = label_logits(one, batch, setup.routing)
    torch.testing.assert_close(label_logits(many, batch, other.routing), want, rtol=1e-5, atol=1e-5)
    losses = row_losses(many.train(), batch, other.routing)
    assert not torch.allclose(losses, row_losses(many, batch, other.routing))
    losses.mean().backward()
    assert all(p.grad.isfinite().all() for p in many.parameters() if p.requires_grad)


def test_masks_of_experts_are_independent_and_unbiased():
    torch.manual_seed(0)
    base = nn.Linear(6, 5)
    base.requires_grad_(False)
    given = {"rank": 2, "experts": 2, "task_width": 3, "dropout": 0.5, "masks": "per_expert"}
    model = nn.ModuleDict({"0": nn.ModuleDict({"lin": base})})
    from mtlbench.api.method import Setup, SetupTask

    tasks = tuple(SetupTask(i, f"t{i}", 1) for i in range(2))
    setup = Setup(
        tasks=tasks,
        routing=Routing(),
        architecture="causal",
        target_modules=("0.lin",),
        shapes={"0.lin": (5, 6)},
        total_steps=1,
        max_length=4,
        seed=0,
    )
    MoeLora(**{**given, "target": "all"}).attach(model, setup)
    layer = model["0"]["lin"]
    nn.init.normal_(layer.up)
    nn.init.normal_(layer.down)
    x = torch.randn(2, 3, 6)
    with torch.no_grad(), setup.routing.of(torch.tensor([0, 1])):
        mean = torch.stack([layer.train()(x) for _ in range(6000)]).mean(0)
        want = layer.eval()(x)
    assert (mean - want).abs().max() < 0.1 * (want - base(x)).abs().max()


@pytest.mark.parametrize("settings", [{"experts": 3}, {"experts": 0}, {"task_width": 0}, {"masks": "two"}, {"rank": 0}])
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    named = "rank=8" if settings == {"experts": 3} else f"{name}={value}"
    with pytest.raises(RequestError, match=named):
        MoeLora(**settings)

"""Align-LoRA is LoRA with a distance between the tasks' low-rank representations in the loss."""

from __future__ import annotations

import pytest
import torch
from attached import BUILDERS, attached, batch_for
from peft import PeftModel
from torch.distributions import Normal, kl_divergence

from mtlbench.api.routing import Routing, RowSums
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.testing import tiny_causal
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.gradients import Gradients
from mtlbench_methods.align_lora import AlignLora, distance
from mtlbench_methods.lora import Lora

METHOD = AlignLora(dropout=0.0, align=0.5)


def divergence(tokens, tasks, count):
    """Of tokens ``[tokens, rank]`` with task ids, pair by pair, by torch's own divergence of normal distributions."""
    total, pairs = 0.0, 0
    normals = {}
    for task in range(count):
        own = tokens[tasks == task]
        if len(own) > 1:
            normals[task] = Normal(own.mean(0), (own.var(0) + 1e-8).sqrt())
    for one in normals:
        for other in normals:
            if one < other:
                both = kl_divergence(normals[one], normals[other]) + kl_divergence(normals[other], normals[one])
                total, pairs = total + both.sum() / 2, pairs + 1
    return total / max(pairs, 1)


def test_the_distance_is_the_mean_divergence_of_pairs():
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, 3, generator=draw, dtype=torch.float64)
    tasks = torch.arange(40) % 3
    tokens[tasks == 1] += 0.7
    tokens[tasks == 2] *= 1.6
    tasks[tasks == 2] = 3  # no token is of task 2
    sums = RowSums(torch.cat([tokens, tokens.square()], dim=1), torch.ones(40, dtype=torch.float64))
    assert float(distance(sums, tasks, 5)) == pytest.approx(float(divergence(tokens, tasks, 5)), rel=1e-6)
    alone = RowSums(sums.values[:6], sums.tokens[:6])
    assert float(distance(alone, torch.zeros(6, dtype=torch.long), 5)) == 0.0


def test_the_loss_of_a_step_has_the_distance_of_every_linear_and_its_gradient():
    model, setup = attached(tiny_causal, METHOD)
    batch = batch_for(
        setup, [TokenRow(task, tuple(range(20 + 3 * task, 27 + 3 * task)), (5, 6)) for task in (0, 1, 2, 1)]
    )
    layers = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0] @ layer.down.T)) for layer in layers
    ]
    with setup.routing.of(batch.tasks):
        model(**batch.inputs)
    for handle in handles:
        handle.remove()
    gradients = Gradients(model=model, method=METHOD, routing=setup.routing, autocast=None)
    loss, losses, _ = gradients.step([batch])
    tasks = batch.tasks.repeat_interleave(batch.inputs["input_ids"].shape[1])
    want = torch.stack([divergence(low.flatten(0, 1), tasks, 3) for low in seen]).mean()
    assert len(seen) == len(layers) == 6
    assert float((loss - losses.mean()).detach()) == pytest.approx(0.5 * float(want.detach()), rel=1e-3)
    aligned = layers[0].down.grad.clone()
    model.zero_grad()
    Gradients(model=model, method=Lora(), routing=setup.routing, autocast=None).step([batch])
    plain = layers[0].down.grad
    (slope,) = torch.autograd.grad(0.5 * want, layers[0].down)
    torch.testing.assert_close(aligned, plain + slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))


@pytest.mark.parametrize("build", BUILDERS)
def test_it_ends_as_a_lora(build, tmp_path):
    model, setup = attached(build, METHOD)
    want = label_logits(model, batch_for(setup), setup.routing)
    METHOD.export(model, tmp_path)
    loaded = PeftModel.from_pretrained(build(0), tmp_path).base_model.model
    METHOD.finish(model)
    for other in (model, loaded):
        torch.testing.assert_close(label_logits(other, batch_for(setup), Routing()), want, rtol=1e-4, atol=1e-4)


def test_without_a_weight_it_is_lora():
    assert not AlignLora(align=0.0).has_auxiliary_loss
    model, setup = attached(tiny_causal, AlignLora(align=0.0, dropout=0.0))
    other, _ = attached(tiny_causal, Lora(rank=8, target="ffn", dropout=0.0))
    batch = batch_for(setup)
    assert torch.equal(label_logits(model, batch, setup.routing), label_logits(other, batch, setup.routing))


def test_a_bad_weight_is_named_with_its_value():
    with pytest.raises(RequestError, match="align=-1"):
        AlignLora(align=-1.0)

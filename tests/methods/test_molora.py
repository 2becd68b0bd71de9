"""MoLoRA on whole models: routed by token or by task, all experts or the largest shares."""

from __future__ import annotations

import pytest
import torch
from attached import BUILDERS, attached, batch_for
from peft import PeftModel
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import PluginError, RequestError
from mtlbench.nn.low_rank.layer import BatchRows
from mtlbench.testing import toy_rows
from mtlbench_methods.molora import MoLora, factors


def relabelled(batch, shift):
    object.__setattr__(batch, "tasks", batch.tasks.roll(shift))
    return batch


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("gate", ["token", "task"])
def test_only_the_task_gate_follows_the_task(build, gate):
    model, setup = attached(build, MoLora(gate=gate))
    before = label_logits(model, batch_for(setup), setup.routing)
    after = label_logits(model, relabelled(batch_for(setup), 2), setup.routing)
    assert torch.equal(before, after) == (gate == "token")


def test_tokens_choose_different_experts():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, generator=draw)
    parameters = {"down": torch.zeros(8, 6), "up": torch.zeros(5, 8), "router": torch.randn(4, 6, generator=draw)}
    rows = BatchRows(None, False, 2, x)
    gate = factors(parameters, rows, rank=2, top_k=0, scale=1.0).gate
    torch.testing.assert_close(gate[..., ::2], torch.softmax(x @ parameters["router"].t(), -1))
    torch.testing.assert_close(gate[..., ::2], gate[..., 1::2])
    kept = factors(parameters, rows, rank=2, top_k=2, scale=1.0).gate[..., ::2]
    assert ((kept > 0).sum(-1) == 2).all()
    torch.testing.assert_close(kept.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(kept.argmax(-1), gate[..., ::2].argmax(-1))


@pytest.mark.parametrize("build", BUILDERS)
def test_with_a_task_gate_a_task_is_a_lora(build, tmp_path):
    model, setup = attached(build, MoLora(gate="task"))
    batch = batch_for(setup, [row for row in toy_rows(tasks=3, rows=2) if row.task == 1])
    MoLora(gate="task").export(model, tmp_path, task=1)
    loaded = PeftModel.from_pretrained(build(0), tmp_path).base_model.model
    want = label_logits(model, batch, setup.routing)
    torch.testing.assert_close(label_logits(loaded, batch, Routing()), want, rtol=1e-4, atol=1e-4)


def test_with_a_token_gate_there_is_no_standard_form(tmp_path):
    model, _ = attached(BUILDERS[0], MoLora())
    with pytest.raises(PluginError, match="token"):
        MoLora().export(model, tmp_path)


def test_the_down_projection_of_a_gated_block_is_routed_by_its_own_input():
    model, setup = attached(BUILDERS[0], MoLora(target="down_proj"))
    block = model.model.layers[0].mlp
    x = torch.randn(2, 3, 32)
    product = block.act_fn(block.gate_proj(x)) * block.up_proj(x)
    assert isinstance(block.gate_proj, nn.Linear)
    with setup.routing.of(torch.tensor([0, 1])):
        torch.testing.assert_close(block(x), block.down_proj(product))


@pytest.mark.parametrize("settings", [{"experts": 0}, {"gate": "word"}, {"top_k": 5}, {"top_k": -1}, {"task_width": 0}])
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=rf"{name}={value}"):
        MoLora(**settings)

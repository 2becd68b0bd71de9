"""GPT-2's Conv1D as linears: the same function, adapted, merged and exported for the stock model."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from mtlbench.backbones.layers import linears_for_conv1d
from mtlbench.nn.prefixes.export import save_merged
from mtlbench.planning.settings import build
from mtlbench.testing import setup_for

IDS = torch.arange(12).view(2, 6)


@pytest.fixture
def stock():
    torch.manual_seed(0)
    words = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**words, initializer_range=0.2)).eval().requires_grad_(False)


def test_the_function_stays_and_every_projection_is_a_linear(stock):
    model = copy.deepcopy(stock)
    linears_for_conv1d(model)
    assert not any(isinstance(module, Conv1D) for module in model.modules())
    assert set(model.state_dict()) == set(stock.state_dict())
    torch.testing.assert_close(model(IDS).logits, stock(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_what_is_trained_on_it_fits_the_stock_model(stock, name, tmp_path):
    model = copy.deepcopy(stock)
    linears_for_conv1d(model)
    method = build(name, {"target": "all"})
    setup = setup_for(model, tasks=2)
    assert {n.rpartition(".")[2] for n in setup.target_modules} == {"c_attn", "c_proj", "c_fc"}
    method.attach(model, setup)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.05 * torch.randn_like(p))
    with torch.no_grad():
        adapted = model.eval()(IDS).logits
    assert (adapted - stock(IDS).logits).abs().max() > 0.01
    method.export(model, tmp_path / "peft")
    through_peft = PeftModel.from_pretrained(copy.deepcopy(stock), tmp_path / "peft").eval()
    torch.testing.assert_close(through_peft(IDS).logits, adapted, rtol=1e-4, atol=1e-4)
    method.finish(model)
    save_merged(model, tmp_path / "merged")
    merged = GPT2LMHeadModel.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(IDS).logits, adapted, rtol=1e-4, atol=1e-4)

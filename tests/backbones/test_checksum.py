"""One changed bit of one weight is seen, whatever its dtype and however it was written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlbench.backbones.checksum import Checksum
from mtlbench.testing import tiny_causal


def flip(tensor, at):
    bits = tensor.detach().view(torch.int16 if tensor.element_size() == 2 else torch.int32).reshape(-1)
    bits[at] ^= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bit_of_any_weight_is_seen(dtype):
    model = tiny_causal(0).to(dtype)
    checksum = Checksum(model)
    assert checksum.holds()
    for p in model.parameters():
        flip(p, p.numel() // 2)
        assert not checksum.holds()
        flip(p, p.numel() // 2)
    assert checksum.holds()


def test_swapped_elements_and_swapped_chunks_are_seen(monkeypatch):
    monkeypatch.setattr("mtlbench.backbones.checksum._CHUNK", 8)
    model = nn.Linear(16, 2, bias=False)
    checksum = Checksum(model)
    for one, other in ((0, 1), (3, 3 + 8), (5, 5 + 16)):
        with torch.no_grad():
            flat = model.weight.view(-1)
            flat[[one, other]] = flat[[other, one]]
        assert not checksum.holds()
        with torch.no_grad():
            flat[[one, other]] = flat[[other, one]]
    assert checksum.holds()


def test_a_write_that_autograd_does_not_see_is_seen():
    model = tiny_causal(0)
    checksum = Checksum(model)
    model.lm_head.weight.data[0, 0] += 1
    assert not checksum.holds()


def test_buffers_count():
    model = nn.BatchNorm1d(3)
    checksum = Checksum(model)
    model.num_batches_tracked += 1
    assert not checksum.holds()

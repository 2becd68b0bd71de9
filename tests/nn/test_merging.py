"""Merging where memory runs out for a second copy of the weights: the same function, and the frozen weights intact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.backbones.checksum import Checksum
from mtlbench.nn.attachments import attach_state
from mtlbench.nn.low_rank.merging import Merging
from mtlbench.plugins import load_method
from mtlbench.testing import setup_for, tiny_causal

METHODS = ["lora", "dora", "multilora", "adalora"]
IDS = torch.tensor([[5, 9, 11, 3, 7], [2, 8, 8, 1, 4]])


def trained(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Callable[[], None]]:
    """A model with values as after training, and what its method does before evaluation."""
    model = tiny_causal(0).to(dtype).requires_grad_(False).eval()
    method = load_method(name)()
    method.attach(model, setup_for(model, tasks=2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator).to(p.dtype))
    return model, lambda: method.finish(model)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits.float()
    return found


def frozen_storages(model: nn.Module) -> set[int]:
    return {p.data_ptr() for p in model.parameters() if not p.requires_grad}


class Full:
    """Memory in which no more than ``fits`` merged weights have room beside the frozen ones."""

    def __init__(self, fits: int, monkeypatch: pytest.MonkeyPatch, *, always: bool = False) -> None:
        self.left, self.always = fits, always
        self.real: Any = torch.addmm
        monkeypatch.setattr(torch, "addmm", self)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        self.left -= 1
        if self.left == -1 or (self.always and self.left < 0):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 86.00 MiB.")
        return self.real(*args, **keywords)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fits", [0, 3, 13])
def test_merged_in_place_it_computes_the_same_and_the_frozen_weights_come_back(
    name: str, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, finish = trained(name)
    finish()
    expected = logits(plain)
    model, finish = trained(name)
    before, frozen, checksum = logits(model), frozen_storages(model), Checksum(model)
    merging = Merging(other_device=True)
    attach_state(model, merging)
    Full(fits, monkeypatch)
    finish()
    assert merging.how == "in place" and merging.note is not None
    assert torch.equal(logits(model), expected)
    assert {p.data_ptr() for p in model.parameters()} <= frozen, "there is a second copy"
    merging.undo(model)
    assert checksum.holds(), "bitwise"
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("apart", [True, False], ids=["no room on the host", "the host is the device"])
def test_without_room_anywhere_it_is_scored_unmerged(name: str, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, finish = trained(name)
    before, checksum = logits(model), Checksum(model)
    merging = Merging(other_device=apart)
    attach_state(model, merging)
    Full(4, monkeypatch, always=True)
    finish()
    assert merging.how == "unmerged" and merging.note is not None
    assert torch.equal(logits(model), before) and checksum.holds()


def test_copies_make_room_when_evaluation_needs_it() -> None:
    model, finish = trained("lora", torch.bfloat16)
    frozen, checksum = frozen_storages(model), Checksum(model)
    merging = Merging(other_device=True)
    attach_state(model, merging)
    finish()
    copies = logits(model)
    assert merging.note is None and not {p.data_ptr() for p in model.parameters()} <= frozen
    assert merging.make_room(model) and not merging.make_room(model), "once"
    assert {p.data_ptr() for p in model.parameters()} <= frozen and torch.equal(logits(model), copies)
    merging.undo(model)
    assert checksum.holds()


def test_a_weight_that_two_layers_share_is_not_written_to() -> None:
    model = tiny_causal(0).requires_grad_(False).eval()
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp  # type: ignore[index, union-attr]
    second.up_proj.weight = first.up_proj.weight
    method = load_method("lora")()
    method.attach(model, setup_for(model, tasks=2))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05)
    before, checksum = logits(model), Checksum(model)
    merging = Merging(how="in place", other_device=True)
    attach_state(model, merging)
    method.finish(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    merging.undo(model)
    assert checksum.holds()

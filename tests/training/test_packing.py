"""Rows laid end to end have the losses and gradients of padded ones, for every method on both kinds of backbone."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mtlbench.conformance.toys import PAD, setup_for, tiny_causal, tiny_seq2seq
from mtlbench.errors import RequestError
from mtlbench.planning.settings import build, read_settings, split_methods
from mtlbench.plugins import offers
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Collator
from mtlbench.training.cuts import end_to_end
from mtlbench.training.forms import form_of
from mtlbench.training.gradients import Gradients, clear

FITS = {"c3a": "c3a[block_size=8]", "peft": "peft[type=VERA,r=4]"}
"""Settings that fit the tiny backbones, of methods whose defaults do not."""
METHODS = [*(FITS.get(name, name) for name in offers("methods") if name != "base"), "preembedd+lora", "prefixnas+mtl_lora", "mtl_lora[target=all]"]


def rows(seed=0, count=9):
    draw = torch.Generator().manual_seed(seed)

    def tokens(low, high):
        return tuple(torch.randint(10, 90, (int(torch.randint(low, high, (), generator=draw)),), generator=draw).tolist())

    made = [TokenRow(int(torch.randint(0, 3, (), generator=draw)), tokens(2, 14), tokens(1, 4)) for _ in range(count)]
    return sorted(made, key=lambda row: row.length)


def attached(words, make):
    ((name, settings),) = split_methods(words)
    method, model = build(name, read_settings(name, settings)), make()
    setup = setup_for(model, tasks=3)
    reason = method.refuse(setup)
    if reason is None:
        try:
            method.attach(model, setup)
        except RequestError as error:
            reason = str(error)
    if reason is not None:
        pytest.skip(reason)
    draw = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn(p.shape, generator=draw) * 0.05)
    model.eval()
    return method, model, setup


def gradient(gradients, batches):
    params = [p for p in gradients.model.parameters() if p.requires_grad]
    clear(params)
    loss, losses, _ = gradients.step(batches)
    return loss, losses, torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in params])


@pytest.mark.parametrize("make", [tiny_causal, tiny_seq2seq])
@pytest.mark.parametrize("words", METHODS)
def test_packed_and_cut_steps_are_padded_ones(words, make):
    method, model, setup = attached(words, make)
    gradients = Gradients(model=model, method=method, routing=setup.routing, autocast=None)
    collator = Collator(setup.architecture, PAD, PAD, torch.device("cpu"))
    form = form_of(gradients, collator, rows(1), attention="sdpa", longest=64)
    assert form.padded_because is None, form.padded_because
    found = [gradient(gradients, [collator.padded(rows())]), gradient(gradients, [form.collate(rows())])]
    tasks = torch.tensor([row.task for row in rows()])
    if gradients.is_linear(tasks):
        cuts = end_to_end([row.length for row in rows()], most=40)
        assert len(cuts) > 1
        found.append(gradient(gradients, [form.collate(rows()[cut]) for cut in cuts]))
    (loss, losses, grads), *others = found
    for other_loss, other_losses, other_grads in others:
        torch.testing.assert_close(other_losses, losses, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=1e-5)
        assert (other_grads - grads).norm() <= 2e-5 * grads.norm()

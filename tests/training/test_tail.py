"""The last layer computed at answers only gives the same losses and gradients as computed everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mtlbench.planning.settings import build, read_settings, split_methods
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import collate
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loss import row_losses
from mtlbench.training.tail import narrow_tail

UNEVEN = [
    TokenRow(0, tuple(range(3, 12)), (20,)),
    TokenRow(1, tuple(range(5, 17)), (21, 22, 23)),
    TokenRow(2, (30, 31), (24, 25)),
]
METHODS = ["lora", "full", "mtl_lora", "moelora", "dora", "prefix[prefix_length=3]", "ia3"]


def attached(words, *, start=tiny_causal):
    ((name, settings),) = split_methods(words)
    method = build(name, read_settings(name, settings))
    model = start(0).double()
    setup = setup_for(model, tasks=3)
    method.attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=draw, dtype=p.dtype)
    return model.eval(), setup


def batch_of(rows, setup):
    return collate(rows, architecture=setup.architecture, pad_id=0, decoder_start_id=0, device=torch.device("cpu"))


def close(grad):
    # peft's own layers stay in float32
    return {"rtol": 1e-9, "atol": 1e-12} if grad.dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-6}


def gradients(model, batch, setup):
    model.zero_grad()
    with setup.routing.of(batch.tasks), narrow_tail(model, batch.answers, setup.routing):
        losses = row_losses(model, batch, setup.routing)
        losses.square().sum().backward()
    return losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("words", METHODS)
def test_losses_and_gradients_are_those_of_the_whole_layer(words):
    model, setup = attached(words)
    batch = batch_of(UNEVEN, setup)
    assert batch.answers.index.shape == (3, 3)
    narrow, found = gradients(model, batch, setup)
    whole, expected = gradients(model, replace(batch, answers=None), setup)
    torch.testing.assert_close(narrow, whole, rtol=1e-6, atol=1e-6)  # the losses are float32
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        atol = 1e-5 * float(grad.abs().max())
        torch.testing.assert_close(
            found[name], grad, rtol=0 if grad.dtype is torch.float64 else 1e-4, atol=atol, msg=name
        )


def seen_lengths(model):
    """Lengths of what the feed-forward block of each layer is given, filled in by the next forwards."""
    lengths = [[] for _ in model.model.layers]
    for layer, seen in zip(model.model.layers, lengths, strict=True):
        layer.mlp.gate_proj.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape[1]))
    return lengths


def test_only_the_last_layer_is_narrow_and_only_inside():
    model, setup = attached("full")
    lengths = seen_lengths(model)
    batch = batch_of(UNEVEN, setup)
    with narrow_tail(model, batch.answers, setup.routing):
        row_losses(model, batch, setup.routing)
    model(**batch.inputs)
    assert lengths == [[14, 14], [3, 14]]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layers_that_are_recomputed_in_the_backward_are_narrow_again(dropout):
    model, setup = attached(f"lora[dropout={dropout}]")
    batch = batch_of(UNEVEN, setup)
    model.train()
    torch.manual_seed(3)
    plain = gradients(model, batch, setup)
    lengths = seen_lengths(model)
    torch.manual_seed(3)
    with checkpointing(model):
        recomputed = gradients(model, batch, setup)
    assert lengths[-1] == [3, 3]
    torch.testing.assert_close(recomputed, plain, rtol=1e-9, atol=1e-12)


def test_long_answers_and_encoder_decoders_have_no_window():
    _, causal = attached("lora")
    _, seq2seq = attached("lora", start=tiny_seq2seq)
    long = [TokenRow(0, (3, 4), (5, 6, 7))]
    assert batch_of(long, causal).answers is None
    assert batch_of(toy_rows(tasks=3, rows=2), seq2seq).answers is None


def test_a_window_stays_inside_its_row():
    _, setup = attached("lora")
    batch = batch_of([TokenRow(0, (3,), (4,)), TokenRow(1, tuple(range(3, 13)), (4, 5, 6))], setup)
    assert batch.answers.index.tolist() == [[0, 1, 2], [21, 22, 23]]
    assert set(batch.label_index.tolist()) <= set(batch.answers.index.flatten().tolist())

"""Which masks attention makes and keeps: none for long rows behind a prefix, one for all layers of T5."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtlbench.conformance.kit import methods_named
from mtlbench.conformance.toys import PAD, setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.nn import DirectPrefix, attach_prefix, seeded_generator
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Collator
from mtlbench.training.gradients import Gradients
from mtlbench.training.loss import row_losses, running

CPU = torch.device("cpu")


class Kept:
    """What forwards inside keep for the backward, each storage once."""

    def __enter__(self):
        self.tensors = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *failure):
        self._hooks.__exit__(*failure)

    def _keep(self, tensor):
        self.tensors[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def pairs(self, queries):
        """Those of as many queries by as many keys, or a few more."""
        return [t for t in self.tensors.values() if t.dim() > 1 and t.shape[-2] == queries <= t.shape[-1] < 2 * queries]


def prefixed(kind, **changes):
    model = tiny_causal(max_position_embeddings=1024, attn_implementation=kind, **changes)
    slots = attach_prefix(model)
    source = DirectPrefix(shape=slots.shape, length=7, draw=seeded_generator(0, "prefix"), std=0.5)
    slots.feed(source)
    return model, source


@pytest.mark.parametrize("tokens", [9, 600])
def test_rows_behind_a_prefix_give_what_a_written_mask_gives_and_long_ones_keep_none(tokens):
    ids = torch.randint(3, 90, (2, tokens), generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, tokens, 97, generator=torch.Generator().manual_seed(1))
    found = []
    for kind in ("eager", "sdpa"):
        model, source = prefixed(kind)
        with Kept() as kept:
            logits = model(input_ids=ids, use_cache=False).logits
        (logits * weight).mean().backward()
        found.append((logits.detach(), source.kv.grad, len(kept.pairs(tokens))))
    (written, written_grad, many), (logits, grad, few) = found
    torch.testing.assert_close(logits, written, rtol=1e-5, atol=2e-6 * float(written.abs().max()))
    assert (grad - written_grad).norm() <= 1e-5 * written_grad.norm()
    assert many > 0, "the eager kernel keeps scores, or this test sees nothing"
    assert few == 0 or tokens < 512


def test_packed_rows_behind_a_prefix_keep_no_mask_of_long_rows_and_share_those_of_short_ones():
    model, _ = prefixed("sdpa", num_hidden_layers=3)
    setup = setup_for(model, tasks=2)
    long, draw = 600, torch.Generator().manual_seed(0)

    def row(tokens):
        return TokenRow(0, tuple(torch.randint(10, 90, (tokens,), generator=draw).tolist()), (5, 2))

    rows = [row(10), row(10), row(long), row(long)]
    collator = Collator("causal", PAD, PAD, CPU)
    batch = collator.packed(rows, by_task=False)
    with running(model, batch, setup.routing), Kept() as kept:
        packed = row_losses(model, batch, setup.routing)
    assert not kept.pairs(long + 1)
    assert list(batch.packing.masks) == [(11, 7)], "one for all layers"
    torch.testing.assert_close(packed, row_losses(model, collator.padded(rows), setup.routing), rtol=1e-5, atol=1e-5)


def test_a_gated_prefix_leaves_every_layer_without_a_mask():
    (method,) = methods_named("ta_lora").values()
    model = tiny_causal(num_hidden_layers=4)
    setup = setup_for(model, tasks=3)
    method.attach(model, setup)
    ids = torch.randint(3, 90, (3, 100), generator=torch.Generator().manual_seed(0))
    with Kept() as kept, setup.routing.of(torch.tensor([0, 1, 2])):
        model(input_ids=ids, use_cache=False)
    assert kept.tensors and not kept.pairs(100)


class Largest(TorchDispatchMode):
    """Most numbers that an operation inside gives."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("text", ["lora", "full", "prefix"])
def test_position_biases_of_packed_rows_are_made_once_for_all_layers_and_never_for_all_tokens(text):
    (method,) = methods_named(text).values()
    layers, heads = 3, 4
    model = tiny_seq2seq(num_layers=layers, d_kv=5)
    setup = setup_for(model, tasks=3)
    method.attach(model, setup)
    gradients = Gradients(model=model, method=method, routing=setup.routing, autocast=None)
    collator = Collator("seq2seq", PAD, PAD, CPU)
    batch = collator.packed(toy_rows(tasks=3, rows=8), by_task=False)
    buckets = len(batch.packing.streams[0].shapes)
    widths = {width for _, width in batch.packing.streams[0].shapes}
    with running(model, batch, setup.routing), Kept() as kept, Largest() as largest:
        losses = gradients.forward(batch)
    found = [t for t in kept.tensors.values() if t.dim() == 4 and t.shape[1] == heads and t.shape[2] == t.shape[3]]
    if text == "lora":  # a trained table takes a kernel that keeps other things, and a prefix has columns more
        assert len([t for t in found if t.shape[2] in widths]) == buckets, "one of each bucket, whatever the layers"
    places = batch.inputs["input_ids"].numel()
    assert largest.numbers < heads * places * places
    if text != "full":
        padded = gradients.forward(collator.padded(toy_rows(tasks=3, rows=8)))
        torch.testing.assert_close(losses, padded, rtol=1e-5, atol=1e-5)

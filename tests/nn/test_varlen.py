"""Packed rows by their bounds give what buckets give, with the arguments that torch's kernel takes.

No kernel for rows of unlike length runs on a processor, so one that computes the same with a plain softmax stands in.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mtlbench.conformance.kit import methods_named
from mtlbench.conformance.toys import PAD, setup_for, tiny_causal, toy_rows
from mtlbench.nn.varlen import why_buckets
from mtlbench.training.batches import Collator
from mtlbench.training.gradients import Gradients, clear

CPU = torch.device("cpu")


class PlainKernel:
    """Attention row by row, with a softmax over all scores; remembers what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, query, key, value, edges, key_edges, longest, longest_key, *, causal, scale):
        self.calls.append((query.shape, key.shape, edges, key_edges, longest, longest_key, causal))
        found, shared = [], query.shape[1] // key.shape[1]
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        for row in range(len(edges) - 1):
            q = query[edges[row] : edges[row + 1]].transpose(0, 1)
            k, v = (
                x[key_edges[row] : key_edges[row + 1]].transpose(0, 1).repeat_interleave(shared, dim=0)
                for x in (key, value)
            )
            scores = q @ k.transpose(1, 2) * scale
            if causal:  # the last query sees the last key
                seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
                scores = scores.masked_fill(~seen, -torch.inf)
            found.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(found)


def gradient(gradients, batch):
    params = [p for p in gradients.model.parameters() if p.requires_grad]
    clear(params)
    _, losses, _ = gradients.step([batch])
    return losses, torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in params])


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("lora", 0),
        ("mtl_lora", 0),
        ("prefix[prefix_length=5]", 5),
        ("prefixnas[per_task=true,prefix_length=4]", 4),
        ("ta_lora", 0),
    ],
)
def test_rows_by_their_bounds_have_the_losses_and_gradients_of_buckets(text, prefix):
    (method,) = methods_named(text).values()
    model = tiny_causal(num_attention_heads=4, num_key_value_heads=2)
    setup = setup_for(model, tasks=3)
    method.attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn(p.shape, generator=draw) * 0.05)
    model.eval()
    gradients = Gradients(model=model, method=method, routing=setup.routing, autocast=None)
    rows = toy_rows(tasks=3, rows=3)
    batch = Collator("causal", PAD, PAD, CPU).packed(rows, by_task=method.task_routed)
    kernel = PlainKernel()
    by_bounds = replace(batch, packing=replace(batch.packing, kernel=kernel, reads=set()))
    (losses, grads), (other_losses, other_grads) = gradient(gradients, batch), gradient(gradients, by_bounds)
    torch.testing.assert_close(other_losses, losses, rtol=1e-5, atol=1e-5)
    assert (other_grads - grads).norm() <= 2e-5 * grads.norm()
    assert batch.packing.reads == {"buckets"} and by_bounds.packing.reads == {"bounds"}

    places = batch.inputs["input_ids"].numel()
    assert kernel.calls
    for query, key, edges, key_edges, longest, longest_key, causal in kernel.calls:
        assert query == (places, 4, 8) and key[1:] == (2, 8), "grouped heads go to the kernel as they are"
        assert edges.dtype == key_edges.dtype == torch.int32
        assert edges[0] == 0 and edges[-1] == places and key_edges[-1] == key[0]
        assert type(longest) is type(longest_key) is int, "a host that reads them from a device waits"
        assert longest == edges.diff().max() and longest_key == key_edges.diff().max()
        if causal:
            assert key_edges.diff().tolist() == (edges.diff() + prefix).tolist()
        else:
            assert text == "ta_lora" and len(set(key_edges.diff().tolist())) == 1, "a gated prefix alone"


CALL = {"dropout": 0.0, "scaling": 0.1, "position_ids": torch.zeros(1), "use_cache": False}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"dtype": torch.float16}, None),
        ({"device": "cpu"}, "no kernel for rows of unlike length on cpu"),
        ({"dtype": torch.float32}, "not in float32"),
        ({"head_dim": 20}, "heads of 20"),
        ({"head_dim": 512}, "heads of 512"),
        ({"causal": False}, "not causal"),
        ({"call": {**CALL, "dropout": 0.1}}, "no dropout"),
        ({"call": {**CALL, "softcap": 30.0}}, "does not know softcap"),
        ({"call": {**CALL, "position_bias": torch.zeros(1)}}, "does not know position_bias"),
        ({"call": {**CALL, "softcap": None, "sliding_window": 4096}}, None),
    ],
)
def test_the_kernel_is_chosen_by_device_dtype_and_call(changes, why):
    given = {"device": "cuda", "dtype": torch.bfloat16, "head_dim": 64, "causal": True, "call": CALL, **changes}
    found = why_buckets(**given)
    assert (found is None) if why is None else (why in found)

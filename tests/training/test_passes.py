"""Rows of a step are cut into passes of like length where that saves more padding than a pass costs."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from mtlbench.testing import tiny_causal, tiny_seq2seq
from mtlbench.training.cuts import like_length, pass_slots


def cost(lengths, cuts, extra):
    return sum(extra + len(lengths[cut]) * max(lengths[cut]) for cut in cuts)


def every_cut(count):
    for size in range(count):
        for inner in combinations(range(1, count), size):
            ends = (0, *inner, count)
            yield [slice(a, b) for a, b in pairwise(ends)]


@pytest.mark.parametrize("extra", [0.0, 3.0, 25.0, 1e6, float("inf")])
@pytest.mark.parametrize("lengths", [[4], [5, 5, 5], [1, 2, 3, 30, 31, 90, 91], [7, 8, 9, 9, 60, 61, 62, 256]])
def test_no_other_cut_costs_less(lengths, extra):
    cuts = like_length(lengths, extra=extra)
    assert [i for cut in cuts for i in range(len(lengths))[cut]] == list(range(len(lengths)))
    if extra == float("inf"):
        assert len(cuts) == 1
        return
    assert cost(lengths, cuts, extra) == min(cost(lengths, other, extra) for other in every_cut(len(lengths)))


def test_rows_in_any_order_are_cut_too():
    lengths = [60, 3, 4, 2]
    assert cost(lengths, like_length(lengths, extra=1.0), 1.0) == 73.0  # 60, then 3 and 4, then 2


def test_a_pass_costs_more_slots_on_an_accelerator_and_fewer_on_a_larger_backbone():
    small = tiny_causal(0)
    cpu, cuda = (pass_slots(small, torch.device(name)) for name in ("cpu", "cuda"))
    assert cuda > 1000 * cpu > 0
    assert pass_slots(tiny_seq2seq(0), torch.device("cpu")) > 0
    for p in small.parameters():
        p.requires_grad_(False)
    assert pass_slots(small, torch.device("cpu")) == cpu

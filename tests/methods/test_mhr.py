"""MHR is Poly with a mixture per block."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import RequestError
from mtlbench.nn.low_rank.layer import LowRankLinear
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq
from mtlbench_methods.mhr import Mhr
from mtlbench_methods.poly import Poly


def attached(build, method):
    model = build(0)
    setup = setup_for(model)
    method.attach(model, setup)
    return model, setup


def layers(model):
    return [m for m in model.modules() if isinstance(m, LowRankLinear)]


def test_one_block_is_poly():
    mhr, _ = attached(tiny_causal, Mhr(splits=1))
    poly, _ = attached(tiny_causal, Poly())
    states = [{name: p for name, p in model.named_parameters() if p.requires_grad} for model in (mhr, poly)]
    assert all(torch.equal(states[0][name], p) for name, p in states[1].items())


@pytest.mark.parametrize("build", [tiny_causal, tiny_seq2seq])
def test_only_logits_grow_with_the_blocks(build):
    counts = []
    for splits in (1, 8):
        model, _ = attached(build, Mhr(splits=splits, target="all"))
        skills = sum(m.down.numel() + m.up.numel() for m in layers(model))
        counts.append((skills, sum(m.logits.numel() for m in layers(model))))
    (skills, logits), (other, more) = counts
    assert skills == other
    assert more == 8 * logits


def test_blocks_mix_on_their_own():
    """A block whose skills are switched by its logits leaves the columns and rows of the other blocks alone."""
    model, _ = attached(tiny_causal, Mhr(splits=4, gumbel=False))
    layer = layers(model)[0]
    with torch.no_grad():
        layer.up.normal_()
        before = layer.folded(1)
        layer.logits[1, 2, 0] += 3.0
        after = layer.folded(1)
    part = layer.in_features // 4
    moved = (after.down - before.down).abs().amax(0).unflatten(0, (4, part)).amax(-1)
    assert moved.gt(0).tolist() == [False, False, True, False]
    part = layer.out_features // 4
    moved = (after.up - before.up).abs().amax(1).unflatten(0, (4, part)).amax(-1)
    assert moved.gt(0).tolist() == [False, False, True, False]


@pytest.mark.parametrize(("splits", "name"), [(3, "q_proj"), (32, "k_proj"), (64, "q_proj")])
def test_splits_that_do_not_divide_a_width_are_refused_when_attaching(splits, name):
    method = Mhr(splits=splits)
    with pytest.raises(RequestError, match=rf"splits={splits} .*self_attn\.{name} \(32 in, \d+ out\).*divisor of 16"):
        attached(tiny_causal, method)


def test_an_unfit_method_leaves_the_model_alone():
    model = tiny_causal(0)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(RequestError):
        Mhr(splits=5).attach(model, setup_for(model))
    assert [name for name, _ in model.named_modules()] == names


@pytest.mark.parametrize("settings", [{"splits": 0}, {"skills": -1}, {"rank": 0}])
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=name) as caught:
        Mhr(**settings)
    assert f"mhr[{name}={value}]" in str(caught.value)

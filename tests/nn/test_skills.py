"""Routers and skill mixtures: the equations, what is kept for the backward, who shares a router."""

from __future__ import annotations

import math

import pytest
import torch

from mtlbench.nn.low_rank.skills import (
    SkillRouter,
    init_router_logits,
    init_skills,
    mix_skills,
    mixing_weights,
    router_name,
    select_skills,
)
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq

ROWS, SPLITS, SKILLS, RANK, WIDTH = 5, 2, 3, 4, 12


def drawn(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()


def test_mixing_is_the_weighted_sum_of_every_block():
    weights, skills = drawn(ROWS, SPLITS, SKILLS), drawn(SPLITS, SKILLS, RANK, WIDTH // SPLITS, seed=1)
    mixed = mix_skills(weights, skills)
    assert mixed.shape == (ROWS, RANK, WIDTH)
    for row in range(ROWS):
        blocks = [sum(weights[row, q, k] * skills[q, k] for k in range(SKILLS)) for q in range(SPLITS)]
        torch.testing.assert_close(mixed[row], torch.cat(blocks, dim=-1))


@pytest.mark.parametrize("splits", [1, 2])
def test_gradients_of_mixing(splits):
    weights, skills = drawn(ROWS, splits, SKILLS), drawn(splits, SKILLS, RANK, WIDTH // splits, seed=1)
    assert torch.autograd.gradcheck(mix_skills, (weights, skills))


@pytest.mark.parametrize("splits", [1, 2])
def test_mixing_keeps_nothing_but_the_weights(splits):
    weights, skills = drawn(ROWS, splits, SKILLS), drawn(splits, SKILLS, RANK, WIDTH // splits, seed=1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mix_skills(weights, skills)
    known = {weights.data_ptr(), skills.data_ptr()}
    assert {t.data_ptr() for t in kept} == known


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("each", [1, 2])
def test_a_row_gets_its_own_skills(splits, each):
    tasks = torch.tensor([2, 0, 2, 1])
    skills = drawn(splits, 3 * each, RANK, WIDTH // splits)
    picked = select_skills(skills, tasks, each=each)
    assert picked.shape == (4, each, RANK, WIDTH)
    for row, task in enumerate(tasks.tolist()):
        for k in range(each):
            whole = torch.cat([skills[q, task * each + k] for q in range(splits)], dim=-1)
            assert torch.equal(picked[row, k], whole)
    (picked * picked).sum().backward()
    assert skills.grad.abs().sum((0, 2, 3)).gt(0).all()
    skills.grad = None
    select_skills(skills, torch.tensor([0, 2]), each=each).sum().backward()
    assert skills.grad[:, each : 2 * each].abs().max() == 0


def test_evaluation_weights_are_sigmoids_over_their_sum_in_every_block():
    logits = drawn(ROWS, SPLITS, SKILLS)
    weights = mixing_weights(logits, SkillRouter(), training=False)
    use = 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(weights, use / use.sum(-1, keepdim=True))
    assert torch.equal(weights, mixing_weights(logits, SkillRouter(gumbel=False), training=True))


def test_training_noise_is_that_of_the_relaxed_bernoulli():
    logits = drawn(ROWS, SPLITS, SKILLS)
    torch.manual_seed(4)
    weights = mixing_weights(logits, SkillRouter(), training=True)
    torch.manual_seed(4)
    use = torch.distributions.RelaxedBernoulli(torch.tensor(1.0).double(), logits=logits).rsample()
    torch.testing.assert_close(weights, use / use.sum(-1, keepdim=True))
    noise = torch.rand(ROWS, SPLITS, SKILLS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = mixing_weights(logits, SkillRouter(), training=True, noise=noise)
    assert torch.equal(given, mixing_weights(logits, SkillRouter(), training=True, noise=noise))
    assert not torch.allclose(given, weights)


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_a_draw_at_the_border_stays_finite(extreme):
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    weights = mixing_weights(logits, SkillRouter(), training=True, noise=torch.tensor([[[extreme, 0.5]]]))
    weights[0, 0, 0].backward()
    assert weights.isfinite().all()
    assert logits.grad.isfinite().all()


def test_straight_through_rounds_and_passes_the_gradient_of_the_sigmoid():
    logits = torch.tensor([[[2.0, -1.0, 0.5]]], dtype=torch.float64, requires_grad=True)
    router = SkillRouter(gumbel=False, straight_through=True, average_correction=True)
    for training in (True, False):
        weights = mixing_weights(logits, router, training=training)
        torch.testing.assert_close(weights * math.sqrt(3), torch.tensor([[[1.0, 0.0, 1.0]]]).double())
    weights.sum().backward()
    use = torch.sigmoid(logits.detach())
    torch.testing.assert_close(logits.grad, use * (1 - use) / math.sqrt(3))


def test_l2_norm_divides_by_the_norm_of_every_block():
    logits = drawn(ROWS, SPLITS, SKILLS)
    weights = mixing_weights(logits, SkillRouter(gumbel=False, l2_norm=True), training=True)
    torch.testing.assert_close(weights, logits / logits.square().sum(-1, keepdim=True).sqrt())


def test_the_average_correction_replaces_the_sum():
    logits = drawn(ROWS, SPLITS, SKILLS)
    weights = mixing_weights(logits, SkillRouter(average_correction=True), training=False)
    torch.testing.assert_close(weights, torch.sigmoid(logits) * math.sqrt(SPLITS / SKILLS))


def test_a_shared_skill_takes_part_in_full():
    logits = drawn(ROWS, SPLITS, SKILLS)
    weights = mixing_weights(logits, SkillRouter(shared_skill=True), training=True)
    use = mixing_weights(logits, SkillRouter(shared_skill=True, average_correction=True), training=True)
    assert use[..., -1].unique().numel() == 1
    torch.testing.assert_close(weights.sum(-1), torch.ones(ROWS, SPLITS).double())
    weights.square().sum().backward()
    assert logits.grad[..., -1].abs().max() == 0
    assert logits.grad[..., :-1].abs().min() > 0


def test_dropout_leaves_skills_out_in_training_only():
    logits = torch.zeros(2000, 1, 4)
    router = SkillRouter(gumbel=False, dropout=0.25)
    weights = mixing_weights(logits, router, training=True)
    assert 0.23 < weights.eq(0).double().mean() < 0.27
    assert weights.isfinite().all()
    assert weights[weights.gt(0).all(-1)].allclose(torch.tensor(0.25))
    assert mixing_weights(logits, router, training=False).allclose(torch.tensor(0.25))


@pytest.mark.parametrize(("bound", "limit"), [("peft", math.sqrt(4 / 1024)), ("mttl", 1 / math.sqrt(3 * 1024))])
def test_draws_fill_their_bounds(bound, limit):
    draw = torch.Generator().manual_seed(0)
    skills = init_skills(4, 3, 8, 1024, bound=bound, draw=draw)
    assert skills.shape == (4, 3, 8, 256)
    assert 0.99 * limit < skills.max() <= limit
    assert -limit <= skills.min() < -0.99 * limit
    logits = init_router_logits(40, 4, 10, draw=draw)
    assert logits.shape == (40, 4, 10)
    assert 0.9e-3 < logits.abs().max() <= 1e-3
    assert logits.min() < 0 < logits.max()


def attention_routers(build, granularity):
    names = [name for name in setup_for(build(0)).target_modules if "ttn" in name or "Attention" in name]
    return len(names), len({router_name(name, granularity) for name in names})


@pytest.mark.parametrize(
    ("granularity", "causal", "seq2seq"),
    [
        ("finegrained", 8, 24),
        ("layerwise", 2, 6),
        ("blockwise", 2, 4),
        ("coderwise", 1, 2),
        ("coarsegrained", 1, 1),
    ],
)
def test_routers_of_two_layers_of_attention(granularity, causal, seq2seq):
    assert attention_routers(tiny_causal, granularity) == (8, causal)
    assert attention_routers(tiny_seq2seq, granularity) == (24, seq2seq)


def test_a_layer_is_smaller_than_a_block():
    names = setup_for(tiny_causal(0)).target_modules
    assert len({router_name(name, "layerwise") for name in names}) == 4
    assert len({router_name(name, "blockwise") for name in names}) == 2
    with pytest.raises(ValueError, match="headwise"):
        router_name(names[0], "headwise")

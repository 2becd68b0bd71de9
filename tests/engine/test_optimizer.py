"""Our AdamW is torch's, and clipping and schedules are the usual ones."""

from __future__ import annotations

import pytest
import torch

from mtlbench.training.optimizer import AdamW, clip_gradients, schedule_factor


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (5,), (2, 2, 2))]


def groups(params):
    return [
        {"params": params[:2], "lr": 1e-2, "weight_decay": 0.1},
        {"params": params[2:], "lr": 3e-3, "weight_decay": 0.0, "betas": (0.8, 0.9)},
    ]


def gradients(params, step):
    torch.manual_seed(100 + step)
    for index, p in enumerate(params):
        p.grad = None if index == 1 and step % 3 == 0 else torch.randn(p.shape)  # one parameter misses steps


def test_twenty_steps_equal_torch():
    ours, theirs = parameters(), parameters()
    mine, other = AdamW(groups(ours), lr=1.0), torch.optim.AdamW(groups(theirs), lr=1.0)
    for step in range(20):
        for params, optimizer in ((ours, mine), (theirs, other)):
            gradients(params, step)
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_layout_and_precision_do_not_matter():
    torch.manual_seed(0)
    start, gradient = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    laid_out = [start.clone(), start.t().contiguous().t(), start.clone(), start.float()]
    params = [torch.nn.Parameter(value) for value in laid_out]
    for p in params:
        p.grad = gradient.to(p.dtype)
    params[2].grad = gradient.t().contiguous().t()
    AdamW([{"params": params}], lr=0.1, weight_decay=0.1).step()
    for p in params[1:]:
        torch.testing.assert_close(p.double(), params[0], rtol=1e-6, atol=1e-6)


def test_its_state_continues_where_it_was_taken():
    whole, parts = parameters(), parameters()
    one, first = AdamW(groups(whole), lr=1.0), AdamW(groups(parts), lr=1.0)
    for step in range(6):
        gradients(whole, step)
        one.step(0.5)
    for step in range(3):
        gradients(parts, step)
        first.step(0.5)
    second = AdamW(groups(parts), lr=1.0)
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        gradients(parts, step)
        second.step(0.5)
    assert all(torch.equal(p, q) for p, q in zip(whole, parts, strict=True))


def test_a_parameter_in_two_groups_is_refused():
    params = parameters()
    with pytest.raises(ValueError, match="two"):
        AdamW([{"params": params}, {"params": params[:1]}], lr=1.0)


@pytest.mark.parametrize("largest", [0.5, 1000.0])
def test_clipping_equals_torch(largest):
    ours, theirs = parameters(), parameters()
    for params in (ours, theirs):
        gradients(params, 1)
    norm = clip_gradients(ours, largest)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, largest))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_schedules():
    def factors(schedule, warmup=0.2):
        return [schedule_factor(step, total=10, warmup=warmup, schedule=schedule) for step in range(10)]

    for schedule in ("cosine", "linear", "constant"):
        assert factors(schedule)[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
        assert min(factors(schedule)) > 0
    assert factors("linear")[2:] == pytest.approx([1 - i / 8 for i in range(8)])
    assert factors("cosine")[6] == pytest.approx(0.5)
    assert factors("constant")[-1] == 1.0
    assert factors("linear", warmup=0.0)[0] == 1.0
    with pytest.raises(ValueError, match="known: cosine"):
        factors("square")

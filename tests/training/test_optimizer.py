"""Optimizers by name: what their updates are, that checkpoints hold their state, and the usual schedules."""

from __future__ import annotations

import pytest
import torch

from mtlbench.training.checkpoints.checkpoint import pack, unpack
from mtlbench.training.optimizer import (
    load_optimizer_state,
    make_optimizer,
    make_scaler,
    optimizer_state,
    schedule_factor,
    take_step,
)


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


def adamw(groups, rate=1.0, decay=0.0):
    return make_optimizer("adamw", groups, learning_rate=rate, weight_decay=decay)


def test_twenty_steps_equal_torch():
    ours, theirs = parameters(), parameters()
    mine, other = adamw(groups(ours)), torch.optim.AdamW(groups(theirs), lr=1.0)
    for step in range(20):
        gradients(ours, step)
        take_step(mine, 1.0)
        gradients(theirs, step)
        other.step()
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
    take_step(adamw([{"params": params}], rate=0.1, decay=0.1), 1.0)
    for p in params[1:]:
        torch.testing.assert_close(p.double(), params[0], rtol=1e-6, atol=1e-6)


def test_the_factor_scales_every_rate():
    ours, theirs = parameters(), parameters()
    halved = [{**group, "lr": group["lr"] / 2} for group in groups(theirs)]
    gradients(ours, 1)
    gradients(theirs, 1)
    mine = adamw(groups(ours))
    take_step(mine, 0.5)
    torch.optim.AdamW(halved).step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_its_state_continues_where_it_was_taken(name):
    def made(params):
        own = [{key: value for key, value in group.items() if key != "betas"} for group in groups(params)]
        return make_optimizer(name, own, learning_rate=1.0, weight_decay=0.0)

    whole, parts = parameters(), parameters()
    one, first = made(whole), made(parts)
    for step in range(6):
        gradients(whole, step)
        take_step(one, 0.5)
    for step in range(3):
        gradients(parts, step)
        take_step(first, 0.5)
    second = made(parts)
    load_optimizer_state(second, unpack(*pack(optimizer_state(first))))
    for step in range(3, 6):
        gradients(parts, step)
        take_step(second, 0.5)
    assert all(torch.equal(p, q) for p, q in zip(whole, parts, strict=True))


def test_adafactor_takes_the_rate_as_it_is():
    """Shazeer and Stern 2018, algorithm 4 without relative steps: the first update of a vector is its sign, clipped."""
    param = torch.nn.Parameter(torch.zeros(4))
    param.grad = torch.tensor([1.0, -2.0, 3.0, -4.0])
    take_step(make_optimizer("adafactor", [{"params": [param]}], learning_rate=0.3, weight_decay=0.0), 1.0)
    torch.testing.assert_close(param.detach(), torch.tensor([-0.3, 0.3, -0.3, 0.3]))


def test_sgd_has_momentum():
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer("sgd", [{"params": [param]}], learning_rate=0.1, weight_decay=0.0)
    for _ in range(2):
        param.grad = torch.ones(1)
        take_step(optimizer, 1.0)
    torch.testing.assert_close(param.detach(), torch.tensor([-0.1 - 0.19]))


def test_a_parameter_in_two_groups_and_an_unknown_name_are_refused():
    params = parameters()
    with pytest.raises(ValueError, match="more than one parameter group"):
        adamw([{"params": params}, {"params": params[:1]}])
    with pytest.raises(ValueError, match="known: adamw, adafactor, sgd"):
        make_optimizer("lion", [{"params": params}], learning_rate=1.0, weight_decay=0.0)


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


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_scaled_gradients_give_the_update_of_plain_ones_and_overflows_none(name):
    plain, scaled = parameters(), parameters()
    optimizers = [make_optimizer(name, [{"params": p}], learning_rate=1e-2, weight_decay=0.0) for p in (plain, scaled)]
    scaler = make_scaler(torch.float16, torch.device("cpu"))
    assert scaler is not None and make_scaler(torch.bfloat16, torch.device("cpu")) is None
    scale = scaler.get_scale()
    for step in range(5):
        gradients(plain, step)
        take_step(optimizers[0], 1.0)
        gradients(scaled, step)
        for p in scaled:
            p.grad = None if p.grad is None else scaler.scale(p.grad)
        scaler.unscale_(optimizers[1])
        take_step(optimizers[1], 1.0, scaler)
    assert all(torch.equal(p, q) for p, q in zip(plain, scaled, strict=True)), "the scale is a power of two"
    gradients(scaled, 5)
    scaled[0].grad[0, 0] = torch.inf
    scaler.unscale_(optimizers[1])
    take_step(optimizers[1], 1.0, scaler)
    assert all(torch.equal(p, q) for p, q in zip(plain, scaled, strict=True)) and scaler.get_scale() == scale / 2

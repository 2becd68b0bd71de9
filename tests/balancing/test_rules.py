"""What balancers make of gradients and losses: equal to torchjd's aggregators, and to the formulas of the papers."""

from __future__ import annotations

import importlib
from math import exp
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.api.cell import Protocol
from mtlbench.balancing.combined import Balancing
from mtlbench.errors import RequestError
from mtlbench.planning.plan import plan_of
from mtlbench.planning.protocols import choose_protocol
from mtlbench.planning.request import check_devices, read_devices
from mtlbench.planning.weighting import read_balance
from mtlbench.plugins import load_balancer, offers

OF_TORCHJD = {
    "mean": ("Mean", {}, 1.0),
    "pcgrad": ("PCGrad", {}, 4.0),
    "gradvac": ("GradVac", {}, 4.0),
    "mgda": ("MGDA", {}, 1.0),
    "imtl_g": ("IMTLG", {}, 1.0),
    "aligned_mtl": ("AlignedMTL", {}, 1.0),
    "aligned_mtl[scale=rmse]": ("AlignedMTL", {"scale_mode": "rmse"}, 1.0),
    "upgrad": ("UPGrad", {}, 1.0),
    "cagrad": ("CAGrad", {"c": 0.4}, 1.0),
    "cagrad[c=0.9]": ("CAGrad", {"c": 0.9}, 1.0),
    "nash_mtl": ("NashMTL", {"n_tasks": 4}, 1.0),
}
"""Balancer to the aggregator, its arguments, and what it is divided by for four tasks."""


def stored_gradients(step: int) -> Tensor:
    """Gradients of four tasks, of different lengths and partly opposed ``[4, 30]``."""
    generator = torch.Generator().manual_seed(step)
    gradients = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    gradients[1] -= 0.8 * gradients[0]
    return gradients * torch.tensor([[1.0], [0.3], [2.0], [0.05]], dtype=torch.float64)


def balancing(text: str, *, tasks: int = 4) -> Balancing:
    balancer = read_balance(text)
    assert balancer is not None
    return Balancing(balancer, tasks=tasks, seed=0)


def combined(at_work: Balancing, gradients: Tensor, *, scale: float = 1.0) -> Tensor:
    """By two parameters, of 10 and 20 numbers."""
    params = [nn.Parameter(torch.zeros(2, 5).double()), nn.Parameter(torch.zeros(20).double())]
    by_task = {task: [row[:10].view(2, 5), row[10:]] for task, row in enumerate(gradients * scale)}
    at_work.combine(params, by_task, scale=scale)
    return torch.cat([p.grad.flatten() for p in params if p.grad is not None]) / scale


@pytest.mark.parametrize("text", OF_TORCHJD)
def test_each_rule_gives_what_the_aggregator_of_torchjd_gives(text: str) -> None:
    aggregation: Any = pytest.importorskip("torchjd.aggregation")
    name, arguments, divisor = OF_TORCHJD[text]
    if (missing := load_balancer(text.partition("[")[0])().missing()) is not None:
        pytest.skip(missing)
    aggregator, at_work = getattr(aggregation, name)(**arguments), balancing(text)
    for step in range(4):
        gradients = stored_gradients(step)
        torch.manual_seed(step + 1)  # the seed of a step, for the rules that draw
        expected = aggregator(gradients) / divisor
        found = combined(at_work, gradients, scale=128.0 if step == 3 else 1.0)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_every_balancer_that_is_offered_can_be_told_apart_and_is_tested() -> None:
    named = {text.partition("[")[0] for text in OF_TORCHJD}
    kinds = {name: load_balancer(name) for name in offers("balancers")}
    own = {name: kind for name, kind in kinds.items() if kind.__module__.startswith("mtlbench.")}
    assert {name for name, kind in own.items() if kind.reads == "gradients"} == named
    assert all(kind.source for kind in own.values())


def test_random_numbers_of_training_are_not_touched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    combined(balancing("gradvac"), stored_gradients(0))
    assert torch.equal(torch.rand(3), expected)


def test_what_belongs_to_one_task_is_left_alone() -> None:
    """A parameter that one task reaches, and one whose rows belong to a task each, among shared ones."""
    shared, stacked, single = (nn.Parameter(torch.zeros(size)) for size in (4, (2, 3), 5))
    of_first = [torch.tensor([1.0, 2, 0, 1]), torch.tensor([[1.0, 2, 3], [0, 0, 0]]), None]
    of_second = [torch.tensor([-3.0, 1, 2, 1]), torch.tensor([[0.0, 0, 0], [4, 5, 6]]), torch.ones(5)]
    at_work = balancing("gradvac", tasks=2)
    at_work.combine([shared, stacked, single], {0: of_first, 1: of_second})
    halves = (stacked.grad, single.grad)
    assert torch.equal(halves[0], torch.tensor([[0.5, 1, 1.5], [2, 2.5, 3]])) and torch.equal(
        halves[1], torch.full((5,), 0.5)
    )
    assert shared.grad is not None and shared.grad[2] == 1.0, "the second task alone reaches this number"
    # Of the shared numbers (1, 2, 1) and (-3, 1, 1) the inner product is 0: nothing to mend, so the mean.
    assert torch.allclose(shared.grad[[0, 1, 3]], torch.tensor([-1.0, 1.5, 1.0]))
    assert at_work.summary()["cosines"][0][1] == pytest.approx(0.0)


def test_the_interference_of_tasks_is_the_mean_cosine_over_the_steps_that_have_both() -> None:
    at_work = balancing("mean", tasks=3)
    p = nn.Parameter(torch.zeros(2))
    one, other, third = torch.tensor([2.0, 1e-30]), torch.tensor([1.0, 1.0]), torch.tensor([-3.0, 1e-30])
    at_work.combine([p], {0: [one], 1: [other]})
    at_work.combine([p], {0: [one], 1: [third]})
    cosines = at_work.summary()["cosines"]
    assert cosines[0][1] == cosines[1][0] == pytest.approx((0.5**0.5 - 1) / 2)
    assert cosines[0][0] == pytest.approx(1.0) and cosines[0][2] is None
    assert at_work.summary()["weights"] == [0.5, 0.5, None]


def test_gradients_that_are_not_finite_are_passed_on_and_not_weighed() -> None:
    at_work = balancing("gradvac", tasks=2)
    p = nn.Parameter(torch.zeros(1))
    at_work.combine([p], {0: [torch.tensor([float("inf")])], 1: [torch.ones(1)]})
    assert p.grad is not None and p.grad.isinf().all() and at_work.summary()["weights"] == [None, None]


def test_uncertainty_comes_to_half_the_inverse_loss() -> None:
    at_work = balancing("uncertainty[rate=0.05]", tasks=2)
    losses, tasks = torch.tensor([2.0, 2.0, 0.25]), torch.tensor([0, 0, 1])
    assert at_work.of_losses().tolist() == [1.0, 1.0]
    at_work.observe(losses, tasks)
    # Adam's first step is its rate, against the sign of 1 / 2 - exp(-s) L
    assert at_work.of_losses().tolist() == pytest.approx([exp(-0.05), exp(0.05)])
    for _ in range(2000):
        at_work.observe(losses, tasks)
    assert at_work.of_losses().tolist() == pytest.approx([0.25, 2.0], rel=1e-2)


def test_dwa_weighs_the_slopes_of_two_periods() -> None:
    at_work = balancing("dwa[every=2]", tasks=2)
    tasks = torch.tensor([0, 1])
    for first, second in ((4.0, 1.0), (2.0, 1.0)):
        at_work.observe(torch.tensor([first, second]), tasks)
    assert at_work.of_losses().tolist() == [1.0, 1.0]
    for first, second in ((2.0, 0.5), (1.0, 0.5)):
        at_work.observe(torch.tensor([first, second]), tasks)
    slopes = [exp((1.5 / 3) / 2), exp(0.5 / 2)]
    assert at_work.of_losses().tolist() == pytest.approx([2 * slope / sum(slopes) for slope in slopes])
    for first, second in ((1.5, 1.0), (1.5, 1.0)):
        at_work.observe(torch.tensor([first, second]), tasks)
    weights = at_work.of_losses().tolist()
    assert weights[1] > weights[0], "the loss of the second rises"


OPTIONS = {"tasks": "glue/rte,glue/mrpc", "model": "demo"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": "gradvak"}, "Unknown balancer 'gradvak'. Did you mean 'gradvac'"),
        ({"balance": "gradvac,dwa"}, "names 2 balancers"),
        ({"balance": "gradvac["}, "Cannot read --balance"),
        ({"balance": "gradvac[bet=1]"}, "has no setting 'bet'. Did you mean 'beta'"),
        ({"balance": "gradvac[beta=2]"}, r"beta must be in \[0, 1\], got 2"),
        ({"balance": "dwa[every=x]"}, "every must be a whole number, got 'x'"),
        ({"balance": "dwa", "task_weighting": "rows"}, "both weigh the tasks"),
        ({"balance": "gradvac", "methods": "mola"}, "mola has an auxiliary loss"),
    ],
)
def test_what_cannot_be_balanced_is_refused_at_the_plan(options: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan_of({**OPTIONS, "methods": "lora", **options})


def test_gradients_are_balanced_on_one_device_and_losses_on_several() -> None:
    by_gradients, by_losses = (plan_of({**OPTIONS, "methods": "lora", "balance": name}) for name in ("gradvac", "dwa"))
    with pytest.raises(RequestError, match="not summed over devices"):
        check_devices(read_devices("2"), by_gradients.cells)
    check_devices(read_devices("2"), by_losses.cells)
    assert any("computes the rows of each task in a step apart" in note for note in by_gradients.notes)
    assert not any("balance" in note for note in by_losses.notes)


def test_a_balancer_that_lacks_its_library_says_what_to_install() -> None:
    lacking = [name for name in offers("balancers") if load_balancer(name)().missing()]
    if importlib.util.find_spec("torchjd") is not None:
        pytest.skip("torchjd is installed")
    assert "pcgrad" in lacking and "gradvac" not in lacking
    with pytest.raises(RequestError, match=r"torchjd: pip install 'mtlbench\[balance\]'"):
        plan_of({**OPTIONS, "methods": "lora", "balance": "pcgrad"})


def test_keys_know_the_balancer_and_only_where_there_is_one() -> None:
    plain, default, other = (
        choose_protocol({} if text is None else {"balance": text}).for_tasks((), data="demo")
        for text in (None, "gradvac[beta=0.5]", "gradvac[beta=0.2]")
    )
    assert "balance" not in plain.identity() and plain.hash() == Protocol(name=plain.name).hash()
    assert default.balance == "gradvac", "a setting at its default is the same balancer"
    assert len({plain.hash(), default.hash(), other.hash()}) == 3

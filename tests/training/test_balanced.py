"""Balanced training with the real loop: per-task gradients sum to the plain one, and a resumed cell is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from resuming import Attempt, Crash, assert_equal
from torch import Tensor

from mtlbench.api.balancer import GradientWeights
from mtlbench.api.cell import Protocol
from mtlbench.api.method import Method
from mtlbench.api.row_checks import RowCheck
from mtlbench.cells.provenance import notes_of
from mtlbench.testing import setup_for, tiny_causal, toy_loop
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench.training.loop import Loop
from mtlbench_methods.adapters import Houlsby
from mtlbench_methods.full import Full
from mtlbench_methods.lora import Lora
from mtlbench_methods.mtl_lora import MtlLora

PLAIN_STEP = {"optimizer": "sgd", "learning_rate": 1.0, "clip": 0.0, "warmup": 0.0, "schedule": "constant"}
"""One step moves each parameter by its gradient."""


class Skewed(GradientWeights):
    """The first task of a step counts most."""

    def weights(self, gramian: Tensor, tasks: Sequence[int]) -> Tensor:
        return torch.tensor([0.9, *[0.05] * (len(tasks) - 1)])


def trained(
    method: Method, *, steps: int = 1, weights: GradientWeights | None = None, **protocol: object
) -> tuple[Loop, dict[str, Tensor]]:
    """The loop, and what each parameter moved by, from values at which all of them have a gradient."""
    model = tiny_causal(0)
    setup = setup_for(model, tasks=3)
    method.attach(model, setup)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    before = {name: p.clone() for name, p in trainable_state(model).items()}
    fixed = {"steps": steps, "batch_size": 12, "evals_per_run": 0, "dtype": "float32", **PLAIN_STEP}
    loop = toy_loop(model, method, setup, Protocol(**{**fixed, **protocol}))
    if weights is not None:
        assert loop._balancing is not None
        loop._balancing._weights = weights
    loop.run()
    return loop, {name: before[name] - p for name, p in trainable_state(loop.model).items()}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    largest = max(float(each.abs().max()) for each in one.values())
    assert largest > 1e-3, "something was trained"
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize(
    "method",
    [Lora(dropout=0.0), MtlLora(dropout=0.0), Houlsby(), Full(learning_rate=1.0)],
    ids=lambda method: method.name,
)
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_gradients_of_tasks_sum_to_the_plain_one(method: Method, micro_batch: int | None) -> None:
    _, plain = trained(method, task_weighting="tasks")
    _, summed = trained(method, balance="mean", micro_batch=micro_batch)
    assert_close(summed, plain)


def test_a_penalty_counts_once() -> None:
    method = MtlLora(dropout=0.0)
    penalised = type("Penalised", (MtlLora,), {"penalty": lambda self, model: _squares(model)})(dropout=0.0)
    plain, summed = (trained(penalised, **options)[1] for options in ({"task_weighting": "tasks"}, {"balance": "mean"}))
    assert_close(summed, plain)
    without = trained(method, balance="mean")[1]
    assert max(float((summed[name] - without[name]).abs().max()) for name in summed) > 1e-3


def _squares(model: torch.nn.Module) -> Tensor:
    return sum((p.square().sum() for p in model.parameters() if p.requires_grad), start=torch.zeros(()))


def test_parameters_of_one_task_keep_their_gradient() -> None:
    _, plain = trained(MtlLora(dropout=0.0), balance="mean")
    _, skewed = trained(MtlLora(dropout=0.0), balance="mean", weights=Skewed())
    moved = {name for name in plain if not torch.allclose(plain[name], skewed[name], rtol=1e-3)}
    routed = {name for name, value in plain.items() if value.dim() == 3 and value.shape[0] == 3}
    assert routed and not routed & moved, "stacks of one matrix for each task"
    assert moved, "what tasks share is weighed"


def test_micro_batches_give_the_same_balanced_training() -> None:
    one, other = (
        trained(Lora(dropout=0.0), balance="gradvac[beta=1]", steps=3, micro_batch=size)[1] for size in (None, 2)
    )
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-5)


def test_loss_weights_change_what_later_steps_minimise() -> None:
    (_, plain), (loop, weighed) = (
        trained(Lora(dropout=0.0), steps=4, learning_rate=0.1, **options)
        for options in ({"task_weighting": "tasks"}, {"balance": "uncertainty[rate=0.5]"})
    )
    assert any(not torch.allclose(plain[name], weighed[name], rtol=1e-3) for name in plain)
    assert loop.progress.task_weighting == "balanced by uncertainty[rate=0.5]"


@pytest.mark.parametrize("balance", ["gradvac", "uncertainty", "dwa[every=3]"])
def test_a_resumed_balanced_cell_is_bitwise_the_undisturbed_one(balance: str, tmp_path: Path) -> None:
    def attempt(**options: object) -> Attempt:
        return Attempt(Lora(dropout=0.1), changes={"balance": balance}, **options)  # type: ignore[arg-type]

    undisturbed = attempt().run()
    with pytest.raises(Crash):
        attempt(folder=tmp_path, crash_at=9).run()
    resumed = attempt(folder=tmp_path).run()
    assert min(resumed.losses) > 1, "it went on from a checkpoint"
    assert_equal(resumed, undisturbed)


def test_the_record_says_what_was_weighed() -> None:
    loop, _ = trained(Lora(), balance="gradvac", steps=3)
    tasks = ("a/x", "a/y", "a/z")
    checks: dict[str, RowCheck] = {}
    notes = notes_of(loop.model, loop.progress, tasks, attached=1, checks=checks, stop=[])
    said = notes["balance"]
    assert said["balancer"] == "gradvac" and notes["task_weighting"] == "balanced by gradvac"
    assert said["weights"].keys() == set(tasks) and all(weight is not None for weight in said["weights"].values())
    cosines = said["cosines"]
    assert cosines["a/x"]["a/x"] == pytest.approx(1.0) and cosines["a/x"]["a/y"] == cosines["a/y"]["a/x"]
    assert all(-1 <= value <= 1.000001 for line in cosines.values() for value in line.values() if value is not None)
    plain, _ = trained(Lora())
    assert "balance" not in notes_of(plain.model, plain.progress, tasks, attached=1, checks=checks, stop=[])

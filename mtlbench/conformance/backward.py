"""Checks of gradients: of all parameters, of absent tasks, with gradient checkpointing."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from mtlbench.conformance.findings import NotApplicable, PromiseBroken, some
from mtlbench.conformance.fixture import SAMPLE, STEPS, Fixture
from mtlbench.training.gradients import Gradients, checkpointing
from mtlbench.training.loss import row_losses

FEW, MANY = 5, 7
"""Two numbers of tasks. Parameters that differ between the two attached models belong to tasks."""
PRESENT = (4, 0, 2, 0) * 3
"""Task ids of a batch, all below :data:`FEW`; several rows, because one might make every ReLU of a bottleneck zero."""
REPLAY_TOLERANCE = 1e-3, 1e-5
"""Maximum difference of a parameter's gradient, relative to its norm and, added, to the norm of all gradients: with a
saturated softmax, small gradients are rounding errors of large ones."""


def gradients(fixture: Fixture) -> None:
    """In training every trainable parameter gets non-zero gradients, all of them finite."""
    training = fixture.trained
    if training.watch.not_finite:
        raise PromiseBroken(f"nan or infinite gradients: {some(training.watch.not_finite)}")
    training.reraise("fit")
    fixture.need_training()
    silent = {name for name, value in training.trained.items() if value.numel()} - training.watch.fed
    if silent:
        raise PromiseBroken(f"no gradient but zero in {STEPS} steps: {some(silent)}")


def absent_tasks(fixture: Fixture) -> None:
    """A batch gives gradients to parameters of its tasks, and exactly none to those of other tasks."""
    fixture.need_routing()
    fixture.need_training()
    shapes = {name: p.shape for name, p in fixture.attached(tasks=FEW).model.named_parameters() if p.requires_grad}
    case = fixture.attached(tasks=MANY)
    with case.setup.routing.of(torch.tensor(PRESENT)):
        loss = row_losses(case.model, fixture.batch(PRESENT), case.setup.routing).mean()
        torch.autograd.backward(loss)
    seen = 0
    for name, p in case.model.named_parameters():
        if not p.requires_grad or shapes.get(name) == p.shape:
            continue
        seen += 1
        if name not in shapes:
            # One parameter per task: with more tasks there are more, and the added ones are absent.
            if p.grad is not None and p.grad.any():
                raise PromiseBroken(f"{name} belongs to a task that is not in the batch, and gets a gradient")
        elif p.grad is not None and p.grad.any():
            _expect_rows(name, [_by_task(view) for view in _views(p.grad, shapes[name])])
    if not seen:
        raise NotApplicable("no parameter grows with the number of tasks")


def checkpoint(fixture: Fixture) -> None:
    """Gradient checkpointing gives the same gradients, including training noise."""
    fixture.need_training()
    case = fixture.attached()
    model, ids = case.model, case.setup.routing
    batch = fixture.batch(SAMPLE)
    by_run: list[dict[str, Tensor]] = []
    for context in (nullcontext(), checkpointing(model)):
        model.zero_grad()
        model.train()
        torch.manual_seed(5)
        with context:
            Gradients(model=model, method=fixture.method, routing=ids, autocast=None).step([batch])
        by_run.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    plain, replayed = by_run
    relative, absolute = REPLAY_TOLERANCE
    slack = absolute * torch.stack([grad.norm() for grad in plain.values()]).norm()
    other = {
        name
        for name in plain.keys() | replayed.keys()
        if name not in plain
        or name not in replayed
        or not (plain[name] - replayed[name]).norm() <= relative * plain[name].norm() + slack
    }
    if other:
        raise PromiseBroken(f"other gradients when layers are recomputed in the backward: {some(other)}")


def _views(grad: Tensor, few: torch.Size) -> list[Tensor]:
    """Every view of ``grad`` with tasks as the first dimension that the shape with :data:`FEW` tasks allows."""
    views = []
    for dim, (small, size) in enumerate(zip(few, grad.shape, strict=True)):
        each, rest = divmod(size, MANY)
        if small == size or rest or small != each * FEW:
            continue
        front = grad.movedim(dim, 0)
        views.append(front.reshape(MANY, each, -1))
        if each > 1:
            views.append(front.reshape(each, MANY, -1).movedim(1, 0))
    return views


def _by_task(view: Tensor) -> Tensor:
    """Whether each task gets a gradient ``[tasks]``."""
    return view.flatten(1).any(1)


def _expect_rows(name: str, layouts: list[Tensor]) -> None:
    """Raise unless some layout of ``name`` by task has gradients for exactly the present tasks."""
    expected = torch.zeros(MANY, dtype=torch.bool)
    expected[list(PRESENT)] = True
    if not layouts or any(torch.equal(layout, expected) for layout in layouts):
        return
    extra = (layouts[0] & ~expected).nonzero().flatten().tolist()
    missing = (expected & ~layouts[0]).nonzero().flatten().tolist()
    if extra:
        raise PromiseBroken(f"a batch of tasks {sorted(set(PRESENT))} gives {name} gradients for tasks {extra} too")
    raise PromiseBroken(f"a batch of tasks {sorted(set(PRESENT))} gives {name} no gradient for tasks {missing}")

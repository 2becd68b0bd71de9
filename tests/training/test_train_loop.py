"""The loop: exact gradients from micro-batches, early stopping, search, divergence."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from mtlbench.api.cell import Protocol
from mtlbench.errors import PluginError, RequestError
from mtlbench.nn.losses import task_means
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_loop, toy_rows
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench.training.loop import DivergedError
from mtlbench.training.splits import Splits, carve
from mtlbench.training.stages import share_steps
from mtlbench_methods.base import Base
from mtlbench_methods.lora import Lora
from mtlbench_methods.mtl_lora import MtlLora
from mtlbench_methods.peml import Peml

TASKS = 3


def loop_for(method, *, build=tiny_causal, splits=None, on_step=None, autocast=None, **changes):
    model = build(0)
    setup = setup_for(model, tasks=TASKS)
    method.attach(model, setup)
    return toy_loop(
        model,
        method,
        setup,
        Protocol(**{"steps": 8, "batch_size": 12, "learning_rate": 1e-2, **changes}),
        splits=splits,
        autocast=autocast,
        on_step=on_step,
    )


@dataclass(frozen=True, kw_only=True)
class PerTask(MtlLora):
    """The mean over tasks, learned weights by task, and a penalty on a parameter."""

    name: ClassVar[str] = "per_task"

    def attach(self, model, setup):
        super().attach(model, setup)
        model.log_variance = nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))

    def loss(self, row_losses, tasks, model):
        weighted = torch.exp(-model.log_variance)[tasks] * row_losses
        penalty = sum(p.square().sum() for name, p in model.named_parameters() if name.endswith("q_proj.down"))
        return task_means(weighted, tasks, TASKS) + model.log_variance.sum() + 0.1 * penalty


@dataclass(frozen=True, kw_only=True)
class Squared(Lora):
    name: ClassVar[str] = "squared"

    def loss(self, row_losses, tasks, model):
        return row_losses.square().mean()


def step_gradients(method, micro_batch):
    """Loss, row losses, tasks and gradients of one step, with every parameter away from its start."""
    loop = loop_for(method)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in loop.model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=draw)
    rows, size = [loop.splits.train[i] for i in loop._plan(loop._stage())[0]], micro_batch or 12
    loop.model.train()
    loss, losses, tasks = loop._gradients.step([loop.form.collate(rows[i : i + size]) for i in range(0, 12, size)])
    grads = {name: p.grad for name, p in loop.model.named_parameters() if p.requires_grad}
    return loss, losses, tasks, grads


@pytest.mark.parametrize("method", [Lora(dropout=0.0), PerTask(dropout=0.0)], ids=lambda m: m.name)
@pytest.mark.parametrize("micro_batch", [3, 5])
def test_micro_batches_give_the_gradient_of_the_whole_batch(method, micro_batch):
    whole, parts = step_gradients(method, None), step_gradients(method, micro_batch)
    for one, other in zip(whole[:3], parts[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert len(set(whole[2].tolist())) > 1
    for name, grad in whole[3].items():
        assert grad.norm() > 0, name
        assert (grad - parts[3][name]).norm() < 1e-4 * grad.norm(), name


def test_a_run_in_micro_batches_ends_where_the_whole_one_does():
    whole, parts = (loop_for(PerTask(dropout=0.0), micro_batch=size, evals_per_run=0) for size in (None, 5))
    for loop in (whole, parts):
        loop.run()
    states = [torch.cat([p.flatten() for p in trainable_state(loop.model).values()]) for loop in (whole, parts)]
    assert (states[0] - states[1]).norm() < 1e-3 * states[0].norm()
    assert parts.progress.real_tokens == whole.progress.real_tokens


@pytest.mark.parametrize("method", [Lora(dropout=0.3), MtlLora(dropout=0.3), Peml(dropout=0.3)], ids=lambda m: m.name)
@pytest.mark.parametrize(
    ("build", "attention"), [(tiny_causal, "sdpa"), (tiny_seq2seq, "sdpa"), (tiny_causal, "eager")]
)
def test_rows_computed_at_once_change_no_draw(build, method, attention):
    """``micro_batch`` is a setting of memory: dropout of weights and of a searched prefix is drawn as for the batch."""
    ends = []
    for size in (None, 4):
        loop = loop_for(method, build=build, micro_batch=size, steps=4, evals_per_run=0, attention=attention)
        loop.run()
        state = torch.cat([p.flatten() for p in trainable_state(loop.model).values()])
        ends.append((loop.progress.losses[-1][1], state))
    (loss, state), (other_loss, other_state) = ends
    assert other_loss == pytest.approx(loss, abs=1e-4)
    assert (other_state - state).norm() < 1e-3 * state.norm()


def test_a_loss_that_cannot_be_summed_from_parts_is_refused_with_micro_batches_only():
    loop_for(Squared(), steps=1).run()
    with pytest.raises(RequestError, match="not linear"):
        loop_for(Squared(), steps=1, micro_batch=3).run()


@pytest.mark.parametrize("build", [tiny_causal, tiny_seq2seq])
@pytest.mark.parametrize("method", [Lora(dropout=0.0), MtlLora(dropout=0.0, target="all")], ids=lambda m: m.name)
def test_it_fits_a_toy_set(build, method):
    splits = Splits(toy_rows(tasks=TASKS, rows=2), [], [])
    loop = loop_for(method, build=build, splits=splits, steps=80, batch_size=6, learning_rate=5e-3)
    loop.run()
    first, last = loop.progress.losses[0][1], loop.progress.losses[-1][1]
    assert last < first / 3
    assert not loop.model.training


def test_the_same_seed_gives_the_same_weights_and_counts():
    loops = [loop_for(MtlLora(dropout=0.1)) for _ in range(2)]
    for number, loop in enumerate(loops):
        torch.manual_seed(number)
        loop.run()
    one, other = (trainable_state(loop.model) for loop in loops)
    assert all(torch.equal(one[name], other[name]) for name in one)
    progress = loops[0].progress
    assert (progress.steps, progress.rows) == (8, 96)
    assert progress.rows_per_task == {0: 32, 1: 32, 2: 32}
    assert 0 < progress.real_tokens < progress.padded_tokens
    assert sum(progress.tokens_per_task.values()) == progress.real_tokens + progress.rows


def test_every_method_sees_the_same_rows():
    seen = {}
    for method in (Lora(), MtlLora()):
        rows = seen[method.name] = []
        loop = loop_for(method, on_step=lambda step, losses, tasks, rows=rows: rows.append(tasks.tolist()))
        loop.run()
    assert seen["lora"] == seen["mtl_lora"]


def test_early_stopping_keeps_the_best_state():
    rows = toy_rows(tasks=TASKS, rows=20)
    stop = toy_rows(tasks=TASKS, rows=20, seed=9)
    wrong = [replace(row, target=(60 + row.target[0] % 7, 2)) for row in stop]  # fitting makes these worse in time
    loop = loop_for(
        Lora(dropout=0.0), splits=Splits(rows, wrong, []), steps=60, evals_per_run=20, patience=3, learning_rate=2e-2
    )
    loop.run()
    progress = loop.progress
    assert progress.stopped_early
    scores = dict(progress.stop_losses)
    assert progress.best_step == min(scores, key=scores.get)
    assert progress.steps == progress.stop_losses[-1][0] == progress.best_step + 3 * 3 < 60
    best = scores[progress.best_step]
    assert loop._score_stop(loop.splits.stop) == pytest.approx(best, rel=1e-6)


def test_patience_counts_from_where_it_is_asked_to():
    loop = loop_for(Lora(), evals_per_run=4, patience=10)
    loop.run(patience_from=5)
    assert [step for step, _ in loop.progress.stop_losses] == [6, 8]


def uneven():
    """Tasks of 60, 20 and 10 rows."""
    rows = toy_rows(tasks=TASKS, rows=60)
    return carve(
        [row for task, count in enumerate((60, 20, 10)) for row in rows[60 * task : 60 * task + count]],
        held_out=0.2,
        seed=0,
    )


def only(splits, task):
    return Splits(*([row for row in rows if row.task == task] for rows in (splits.train, splits.stop, splits.search)))


@pytest.mark.parametrize("mixing", ["proportional", "uniform"])
def test_a_run_on_one_task_is_a_cell_of_its_rows_and_its_share_of_the_steps(mixing):
    splits, settings = uneven(), {"evals_per_run": 3, "patience": 1, "weight_decay": 0.1, "mixing": mixing}
    shares = []
    for task in range(TASKS):
        part = loop_for(Lora(dropout=0.3), splits=splits, steps=20, **settings)
        part.run(tasks=[task])
        shares.append(part._stage([task]).steps)
        alone = loop_for(Lora(dropout=0.3), splits=only(splits, task), steps=shares[-1], **settings)
        alone.run()
        one, other = trainable_state(part.model), trainable_state(alone.model)
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert part.progress.stop_losses == alone.progress.stop_losses != []
        assert set(part.progress.rows_per_task) == {task}
    assert shares == ([13, 5, 2] if mixing == "proportional" else [7, 7, 6])


def test_runs_on_disjoint_tasks_use_the_rows_of_the_joint_run():
    steps = []
    joint, staged = (loop_for(Lora(), splits=uneven(), steps=30, evals_per_run=0) for _ in range(2))
    staged.on_step = lambda step, losses, tasks: steps.append(step)
    joint.run()
    for tasks in ([1], [0, 2]):
        staged.run(tasks=tasks)
    assert staged.progress.rows == joint.progress.rows
    for task, rows in joint.progress.rows_per_task.items():
        assert abs(staged.progress.rows_per_task[task] - rows) <= 12
    assert steps == list(range(30))
    first, second = staged.progress.stages
    assert (first.tasks, second.tasks) == ((1,), (0, 2))
    assert (first.first_step, second.first_step, second.steps) == (0, first.steps, 30)
    assert staged.progress.losses[-1][0] == 30


def test_every_run_keeps_its_own_best_state():
    rows = toy_rows(tasks=TASKS, rows=20)
    wrong = [replace(row, target=(60 + row.target[0] % 7, 2)) if row.task == 0 else row for row in rows]
    loop = loop_for(
        Lora(dropout=0.0), splits=Splits(rows, wrong, []), steps=90, evals_per_run=10, patience=2, learning_rate=2e-2
    )
    for task in range(TASKS):
        loop.run(tasks=[task])
    first, *others = loop.progress.stages
    assert first.stopped_early
    assert first.best_step < first.steps < 30
    for stage in others:
        scores = dict(loop.progress.stop_losses)
        own = {step: loss for step, loss in scores.items() if stage.first_step < step <= stage.steps}
        assert stage.best_step == min(own, key=own.get)
    assert loop.progress.stopped_early


@pytest.mark.parametrize("tasks", [[], [3], [-1], [0, 7]])
def test_a_run_on_a_task_that_is_not_there_is_an_error(tasks):
    with pytest.raises(PluginError, match=re.escape(str(tasks))):
        loop_for(Lora()).run(tasks=tasks)


def test_fewer_steps_than_tasks_cannot_be_shared():
    with pytest.raises(RequestError, match="2 steps.*3 tasks"):
        loop_for(Lora(), steps=2).run(tasks=[0])


@pytest.mark.parametrize("rows", [[1000, 10, 1], [5, 5, 5, 5], [0, 3, 900]])
@pytest.mark.parametrize("steps", [4, 7, 100])
def test_shares_are_whole_sum_to_the_budget_and_leave_no_task_out(rows, steps):
    shares = share_steps(rows, steps=steps, mixing="proportional")
    assert sum(shares) == steps
    assert all((share > 0) == (count > 0) for share, count in zip(shares, rows, strict=True))
    assert all(abs(share - steps * count / sum(rows)) < len(rows) for share, count in zip(shares, rows, strict=True))


def test_events_carry_detached_rows_and_hooks_run_in_order():
    calls = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(Lora):
        name: ClassVar[str] = "watched"

        def after_step(self, model, step):
            has = all(p.grad is not None for p in model.parameters() if p.requires_grad)
            calls.append(("after", step, has))

    loop = loop_for(Watched(), steps=2, on_step=lambda s, losses, t: calls.append(("event", s, losses.requires_grad)))
    loop.run(before_step=lambda step: calls.append(("before", step, None)))
    assert calls == [
        *[("before", 0, None), ("after", 0, True), ("event", 0, False)],
        *[("before", 1, None), ("after", 1, True), ("event", 1, False)],
    ]


def test_the_search_loss_has_gradients_no_dropout_and_leaves_training_alone():
    states = []
    losses = []
    for searching in (False, True):
        loop = loop_for(Lora(dropout=0.0))

        def search(step, loop=loop):
            losses.append(loop.search_loss())
            losses[-1].backward()

        loop.run(before_step=search if searching else None)
        states.append(trainable_state(loop.model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len({loss.item() for loss in losses}) == 8
    fresh = [loop_for(Lora(dropout=0.5)) for _ in range(2)]
    assert fresh[0].search_loss().item() == fresh[1].search_loss().item()


def test_fewer_rows_at_once_change_no_search():
    """The search batch is a share of the training batch, whatever is computed at once, and so is its gradient."""
    found = []
    for micro_batch in (None, 2, 1):
        loop = loop_for(Lora(dropout=0.5), micro_batch=micro_batch)
        parameters = [p for p in loop.model.parameters() if p.requires_grad]
        with torch.no_grad():
            for at, p in enumerate(parameters):
                p.copy_(torch.linspace(-0.5, 0.5, p.numel()).view_as(p) * (1 + at % 3))
        loop.model.train()
        loss = loop.search_loss(share=0.25)
        assert loop._searches.state() == [1, 3] and loop.model.training
        found.append((loss.item(), torch.autograd.grad(loss, parameters)))
        assert loop.model.training
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for one, other in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_searching_without_a_search_split_is_an_error():
    loop = loop_for(Lora(), splits=Splits(toy_rows(tasks=TASKS, rows=4), [], []))
    with pytest.raises(RequestError, match="held_out"):
        loop.search_loss()


def test_a_diverging_run_ends_soon_with_what_to_do():
    loop = loop_for(Lora(learning_rate=1e30), steps=1000, evals_per_run=0)
    with pytest.raises(DivergedError, match="learning_rate below"):
        loop.run()
    assert loop.progress.steps <= 10


def test_a_method_that_trains_nothing_is_named():
    with pytest.raises(PluginError, match="'base'"):
        loop_for(Base()).run()


@pytest.mark.parametrize("method", [Lora(dropout=0.0), MtlLora(dropout=0.0)], ids=lambda m: m.name)
def test_checkpointing_and_autocast_train(method):
    plain, recomputed = loop_for(method), loop_for(method, checkpointing=True)
    half = loop_for(method, autocast=torch.bfloat16, checkpointing=True)
    for loop in (plain, recomputed, half):
        loop.run()
    last = [loop.progress.stop_losses[-1][1] for loop in (plain, recomputed, half)]
    assert last[1] == pytest.approx(last[0], rel=1e-3)
    assert last[2] == pytest.approx(last[0], rel=0.05)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert not any(getattr(module, "gradient_checkpointing", False) for module in half.model.modules())

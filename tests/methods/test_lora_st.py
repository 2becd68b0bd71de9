"""One LoRA per task: what a plain LoRA reaches on that task alone, and nothing of the others."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel

from mtlbench import nn
from mtlbench.api.cell import Protocol
from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import PluginError, RequestError
from mtlbench.nn.low_rank.layer import LowRankLinear, merge_low_rank
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_loop, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.checkpoints.state import load_adapter, save_adapter, trainable_state
from mtlbench.training.gradients import checkpointing
from mtlbench.training.loop import DivergedError
from mtlbench.training.loss import row_losses
from mtlbench.training.splits import Splits, carve
from mtlbench_methods.lora import Lora
from mtlbench_methods.lora_st import LoraSt, Stage

BUILDERS = [tiny_causal, tiny_seq2seq]
COUNTS = (60, 20, 10)
TASKS = len(COUNTS)


def collated(setup, rows=None):
    return collate(
        rows or toy_rows(tasks=TASKS, rows=2),
        architecture=setup.architecture,
        pad_id=0,
        decoder_start_id=0,
        device=torch.device("cpu"),
    )


def attached(build, *, noise=0.3, **settings):
    model = build(0)
    setup = setup_for(model, tasks=TASKS)
    LoraSt(**{"rank": 4, **settings}).attach(model, setup)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += noise * torch.randn(p.shape, generator=draw)
    return model, setup


def adapted(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def uneven():
    rows = toy_rows(tasks=TASKS, rows=60)
    mine = [row for task, count in enumerate(COUNTS) for row in rows[60 * task : 60 * task + count]]
    return carve(mine, held_out=0.2, seed=0)


def only(splits, task):
    return Splits(*([row for row in rows if row.task == task] for rows in (splits.train, splits.stop, splits.search)))


def loop_for(method, *, build=tiny_causal, splits=None, on_step=None, **changes):
    model = build(0)
    setup = setup_for(model, tasks=TASKS)
    method.attach(model, setup)
    settings = {"steps": 20, "batch_size": 8, "learning_rate": 1e-2, "evals_per_run": 3, "patience": 1}
    loop = toy_loop(
        model,
        method,
        setup,
        Protocol(**{**settings, "weight_decay": 0.1, **changes}),
        splits=splits or uneven(),
        on_step=on_step,
    )
    return loop, setup


@pytest.mark.parametrize("build", BUILDERS)
def test_each_task_is_exactly_a_plain_lora_trained_on_its_rows(build):
    method = LoraSt(rank=4, dropout=0.3)
    loop, _ = loop_for(method, build=build)
    method.fit(loop.model, loop)
    assert loop.progress.steps <= 20
    for task, stage in enumerate(loop.progress.stages):
        steps = loop._stage([task]).steps
        plain = Lora(rank=4, dropout=0.3)
        alone, _ = loop_for(plain, build=build, splits=only(uneven(), task), steps=steps)
        plain.fit(alone.model, alone)
        assert alone.progress.steps == stage.steps - stage.first_step
        moved = 0
        for name, module in adapted(alone.model).items():
            other = loop.model.get_submodule(name)
            assert torch.equal(other.get_parameter(f"down_{task}"), module.down)
            assert torch.equal(other.get_parameter(f"up_{task}"), module.up)
            moved += int(module.up.any())
        assert moved > 0


def test_a_task_stands_still_while_another_trains():
    method = LoraSt(rank=4)
    loop, _ = loop_for(method, evals_per_run=0, weight_decay=0.5)
    last = trainable_state(loop.model)
    changed = []

    def watch(step, losses, tasks):
        now = trainable_state(loop.model)
        moved = {int(name.rpartition("_")[2]) for name in now if not torch.equal(now[name], last[name])}
        changed.append((set(tasks.tolist()), moved))
        last.update(now)

    loop.on_step = watch
    method.fit(loop.model, loop)
    assert len(changed) == 20
    assert all(len(tasks) == 1 and moved == tasks for tasks, moved in changed)
    assert {task for tasks, _ in changed for task in tasks} == set(range(TASKS))
    assert set(trainable_state(loop.model)) == set(last)


def test_the_start_of_every_task_is_the_start_of_lora():
    model, setup = attached(tiny_causal, noise=0.0)
    plain = tiny_causal(0)
    Lora(rank=4).attach(plain, setup)
    for name, module in adapted(plain).items():
        for task in range(TASKS):
            assert torch.equal(model.get_submodule(name).get_parameter(f"down_{task}"), module.down)
    batch = collated(setup)
    assert torch.equal(label_logits(model, batch, setup.routing), label_logits(tiny_causal(0), batch, Routing()))


@pytest.mark.parametrize("build", BUILDERS)
def test_a_mixed_batch_equals_one_batch_per_task_and_the_lora_merged_for_it(build):
    model, setup = attached(build)
    rows = toy_rows(tasks=TASKS, rows=2)
    rows = [rows[i] for i in (4, 0, 2, 5, 1, 3)]
    mixed = row_losses(model, collated(setup, rows), setup.routing)
    for task in range(TASKS):
        at = [i for i, row in enumerate(rows) if row.task == task]
        batch = collated(setup, [rows[i] for i in at])
        torch.testing.assert_close(mixed[at], row_losses(model, batch, setup.routing), rtol=1e-4, atol=1e-4)
        merged = copy.deepcopy(model)
        merge_low_rank(merged, task)
        torch.testing.assert_close(mixed[at], row_losses(merged, batch, Routing()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("build", BUILDERS)
def test_a_row_gives_gradient_to_its_own_task_only(build):
    model, setup = attached(build)
    batch = collated(setup, [row for row in toy_rows(tasks=TASKS, rows=2) if row.task != 1])
    with setup.routing.of(batch.tasks):
        row_losses(model, batch, setup.routing).mean().backward()
    for module in adapted(model).values():
        for task in range(TASKS):
            for name in ("down", "up"):
                grad = module.get_parameter(f"{name}_{task}").grad
                assert bool(grad.any()) == (task != 1)


@pytest.mark.parametrize("build", BUILDERS)
def test_another_order_of_ids_changes_the_losses(build):
    model, setup = attached(build)
    batch = collated(setup)
    losses = row_losses(model, batch, setup.routing)
    object.__setattr__(batch, "tasks", batch.tasks.roll(2))
    assert (row_losses(model, batch, setup.routing) - losses).abs().max() > 1e-2


@pytest.mark.parametrize("build", BUILDERS)
def test_beams_follow_their_row(build):
    model, setup = attached(build)
    ids = torch.tensor([[1, 11, 12, 13], [1, 14, 15, 16], [1, 11, 12, 13]])
    tasks = torch.tensor([2, 0, 1])

    def generate(at):
        inputs = {"input_ids": ids[at], "attention_mask": torch.ones_like(ids[at])}
        with setup.routing.of(tasks[at]):
            return model.generate(**inputs, num_beams=3, max_new_tokens=5, min_new_tokens=5, do_sample=False)

    together = generate([0, 1, 2])
    for row in range(3):
        assert torch.equal(together[row], generate([row])[0])
    assert not torch.equal(together[0], together[2])


@pytest.mark.parametrize("build", BUILDERS)
def test_gradient_checkpointing_gives_the_same_gradients(build):
    model, setup = attached(build, dropout=0.3)
    other = copy.deepcopy(model)
    for module in adapted(other).values():
        module.routing = setup.routing
    batch = collated(setup)
    for each, context in ((model, nullcontext()), (other, checkpointing(other))):
        each.train()
        torch.manual_seed(5)
        with context, setup.routing.of(batch.tasks):
            row_losses(each, batch, setup.routing).mean().backward()
    want, got = (torch.cat([p.grad.flatten() for p in m.parameters() if p.requires_grad]) for m in (model, other))
    assert (got - want).norm() < 1e-4 * want.norm()


def test_training_with_checkpointing_ends_where_training_without_does():
    states = []
    for checkpoint in (False, True):
        method = LoraSt(rank=4, dropout=0.0)
        loop, _ = loop_for(method, checkpointing=checkpoint)
        method.fit(loop.model, loop)
        states.append(torch.cat([p.detach().flatten() for p in loop.model.parameters() if p.requires_grad]))
    assert (states[0] - states[1]).norm() < 1e-2 * states[0].norm()


def test_what_is_saved_reads_back(tmp_path):
    model, setup = attached(tiny_causal)
    LoraSt(rank=4).finish(model)
    save_adapter(model, tmp_path, {})
    again, _ = attached(tiny_causal, noise=0.9)
    load_adapter(again, tmp_path)
    batch = collated(setup)
    logits = label_logits(model, batch, setup.routing)
    for module in adapted(again).values():
        module.routing = setup.routing
    assert torch.equal(label_logits(again, batch, setup.routing), logits)


@pytest.mark.parametrize("build", BUILDERS)
def test_the_export_is_the_lora_of_one_task(build, tmp_path):
    model, setup = attached(build)
    method = LoraSt(rank=4)
    batch = collated(setup)
    for task in range(TASKS):
        method.export(model, tmp_path / str(task), task=task)
        loaded = PeftModel.from_pretrained(build(0), tmp_path / str(task))
        object.__setattr__(batch, "tasks", torch.full_like(batch.tasks, task))
        logits = label_logits(model, batch, setup.routing)
        other = label_logits(loaded.base_model.model, batch, Routing())
        torch.testing.assert_close(other, logits, rtol=1e-3, atol=1e-3)
    with pytest.raises(PluginError, match="choose the task"):
        method.export(model, tmp_path / "none")


def test_a_failed_stage_leaves_rows_of_all_tasks_possible():
    method = LoraSt(rank=4, learning_rate=1e30)
    loop, _ = loop_for(method, steps=60)
    with pytest.raises(DivergedError, match="learning_rate below"):
        method.fit(loop.model, loop)
    assert nn.get_state(loop.model, Stage).task is None


def test_fewer_steps_than_tasks_are_refused():
    model = tiny_causal(0)
    assert "2 steps cannot be shared by 3 tasks" in LoraSt().refuse(setup_for(model, tasks=3, total_steps=2))
    assert LoraSt().refuse(setup_for(model, tasks=3, total_steps=3)) is None


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.5}, {"target": ""}])
def test_a_bad_setting_is_named_with_its_value(settings):
    ((name, value),) = settings.items()
    with pytest.raises(RequestError, match=rf"lora_st\[{name}={value}\].*must be"):
        LoraSt(**settings)

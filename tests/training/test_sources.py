"""Sources first, targets from there: the same method, two budgets, task ids of both, and only targets scored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from mtlbench.api.cell import Cell, Protocol
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_cell
from mtlbench.composition import Sum
from mtlbench.files.stop_request import StopRequest
from mtlbench.observers.events import Events
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.store import RunFolder
from mtlbench.testing import setup_for, tiny_causal, toy_loop, toy_rows
from mtlbench.training.checkpoints.checkpoint import CheckpointStore
from mtlbench.training.checkpoints.recovery import CheckpointPolicy
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench.training.splits import budget_steps, carve, phases
from mtlbench_methods.adalora import AdaLora
from mtlbench_methods.mtl_lora import MtlLora
from mtlbench_methods.prefix import Prefix
from mtlbench_methods.prefixnas import PrefixNas

PROTOCOL = Protocol(
    sources="a/x,a/y", steps=6, adapt_steps=4, batch_size=8, learning_rate=1e-2, held_out=0.2, evals_per_run=1
)


@dataclass(frozen=True, kw_only=True)
class Watched(MtlLora):
    """Keeps the steps that ``after_step`` is told."""

    name: ClassVar[str] = "watched"

    def after_step(self, model, step):
        model.mtlbench_told = [*getattr(model, "mtlbench_told", []), step]


@dataclass(frozen=True, kw_only=True)
class Starting(MtlLora):
    """Starts its targets from its sources."""

    name: ClassVar[str] = "starting"

    def adapt(self, model, trainer):
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("logits"):
                    p[2:] = 7.0
        trainer.run()


class Crash(Exception):
    """Stands for the end of the process."""


def trained(method, protocol=PROTOCOL, *, folder=None, crash_at=None):
    """The model after each phase, the task ids of every step, and the loop; a crash after step ``crash_at``."""
    model = tiny_causal(0)
    setup = setup_for(model, tasks=4)
    method.attach(model, setup)
    parts = phases(carve(toy_rows(tasks=4, rows=40), held_out=protocol.held_out, seed=0), protocol)
    seen: list[set[int]] = []

    def stepped(step, losses, tasks):
        seen.append(set(tasks.tolist()))
        if step + 1 == crash_at:
            raise Crash

    loop = toy_loop(
        model,
        method,
        setup,
        parts[0][1],
        splits=parts[0][0],
        on_step=stepped,
        recovery=CheckpointPolicy(CheckpointStore(folder, identity={}), stop=StopRequest(), every_s=0.0)
        if folder
        else None,
    )
    states = [trainable_state(model)]
    method.fit(model, loop)
    states.append(trainable_state(model))
    loop.turn_to(*parts[1])
    method.adapt(model, loop)
    states.append(trainable_state(model))
    return model, loop, seen, states


def test_the_sources_have_their_steps_and_then_the_targets_theirs():
    model, loop, seen, _ = trained(Watched())
    assert [tasks <= {0, 1} for tasks in seen] == [True] * 6 + [False] * 4
    assert all(tasks <= {2, 3} for tasks in seen[6:])
    assert loop.progress.steps == 10 and [stage.tasks for stage in loop.progress.stages] == [(0, 1), (2, 3)]
    assert [(stage.first_step, stage.steps) for stage in loop.progress.stages] == [(0, 6), (6, 10)]
    assert model.mtlbench_told == list(range(10)), "after_step counts on, so that ended schedules stay ended"
    assert sum(loop.progress.rows_per_task.values()) == 80


@pytest.mark.parametrize("crash_at", [3, 6, 7, 9])
def test_a_crash_in_either_stage_changes_nothing(tmp_path, crash_at):
    whole = trained(MtlLora())
    with pytest.raises(Crash):
        trained(MtlLora(), folder=tmp_path / "c", crash_at=crash_at)
    again = trained(MtlLora(), folder=tmp_path / "c")
    assert len(again[2]) <= 11 - crash_at, "it went on from the last checkpoint"
    assert all(torch.equal(p, again[3][-1][name]) for name, p in whole[3][-1].items())
    one, other = whole[1].progress.to_json(), again[1].progress.to_json()
    assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


def test_what_belongs_to_a_target_starts_as_attached_and_what_is_shared_goes_on():
    _, _, _, (start, sources, targets) = trained(MtlLora())
    by_task = [name for name, p in start.items() if p.shape[0] == 4 and p.dim() > 1 and p.shape[0] not in p.shape[1:]]
    assert by_task
    for name in by_task:
        assert torch.equal(start[name][2:], sources[name][2:]), "no source moved what a target owns"
        assert torch.equal(sources[name][:2], targets[name][:2]), "no target moved what a source owns"
        assert not torch.equal(sources[name][2:], targets[name][2:])
    shared = [name for name in start if name not in by_task]
    assert any(not torch.equal(sources[name], start[name]) for name in shared)
    assert any(not torch.equal(sources[name], targets[name]) for name in shared)


@pytest.mark.parametrize("order", ["parallel", "in_turn"])
def test_parts_of_a_composition_adapt_as_they_do_alone(order):
    method = Sum(members=(Prefix(prefix_length=3), Starting()), order=order)
    _, loop, seen, (_, sources, targets) = trained(method)
    assert len(seen) == 10 and all(tasks <= {2, 3} for tasks in seen[6:])
    starts = [name for name in sources if name.endswith("logits")]
    assert starts and all((targets[name][2:] > 6.5).all() for name in starts)
    assert all((sources[name] < 6.5).all() for name in starts)
    assert any(not torch.equal(sources[name], targets[name]) for name in sources if "mtlbench_prefix" in name)
    assert len(loop.progress.stages) == (2 if order == "parallel" else 4)


def test_a_rank_budget_stays_where_the_sources_left_it():
    method = AdaLora(init_rank=4, target_rank=2, delta_t=1)
    protocol = Protocol(**{**vars(PROTOCOL), "steps": 30, "adapt_steps": 10})
    model = trained(method, protocol)[0]
    budget = model.mtlbench_ranks
    kept = [int((values != 0).sum()) for values in budget._values]
    assert sum(kept) == 2 * len(budget._values)


def test_a_searched_architecture_is_kept_for_the_targets():
    method = PrefixNas(layers=2, prefix_length=3, width=16)
    _, _, _, (_, sources, targets) = trained(method, Protocol(**{**vars(PROTOCOL), "steps": 20}))
    assert sources.keys() == targets.keys(), "nothing was cut again"
    moved = [name for name in sources if not torch.equal(sources[name], targets[name])]
    assert moved and not any(name.endswith("alpha") for name in moved)


def test_budgets_of_the_targets():
    splits = carve(toy_rows(tasks=4, rows=40), held_out=0.2, seed=0)
    for changes, steps in (
        ({"adapt_steps": 4}, 4),
        ({"adapt_steps": None}, 6),
        ({"adapt_steps": None, "adapt_epochs": 2.0}, 16),
        ({"adapt_steps": None, "steps": None, "epochs": 1.0}, 8),
    ):
        parts = phases(splits, Protocol(**{**vars(PROTOCOL), **changes}))
        assert budget_steps(*parts[1]) == steps
        targets = parts[1][0]
        assert {row.task for rows in (targets.train, targets.stop, targets.search) for row in rows} == {2, 3}
    assert phases(splits, Protocol()) == [(splits, Protocol())]


@pytest.fixture(scope="module")
def bench():
    return Bench(device="cpu", threads=1, data="demo")


def cells(methods: str, **protocol) -> tuple[Cell, ...]:
    small = {"train_rows": 40, "eval_rows": 8, "steps": 4, "adapt_steps": 3, "batch_size": 8}
    words = {**small, "sources": "glue/sst2", **protocol}
    return make_plan(Request(methods=methods, tasks="glue/rte,glue/mrpc", protocol=words)).cells


def test_a_cell_scores_its_targets_and_records_both_stages(tmp_path, bench):
    folder = RunFolder(tmp_path)
    folder.preflight()
    records = [
        run_cell(cell, bench=bench, folder=folder, events=Events({}))
        for cell in cells("mtl_lora,base,lora_st", k_shot="16")
    ]
    done, base, refused = records
    assert done.status == base.status == "ok" and set(done.scores) == set(base.scores) == {"glue/rte", "glue/mrpc"}
    assert [stage["tasks"] for stage in done.notes["stages"]] == [["glue/sst2"], ["glue/rte", "glue/mrpc"]]
    assert done.costs.steps == 7 and done.notes["rows_per_task"]["glue/sst2"] == 32
    assert refused.status == "skipped" and "nothing of the sources reaches a target" in refused.failure.message


def test_shots_are_those_of_the_targets_only_and_of_the_seed(bench):
    (cell,) = cells("lora", k_shot="16")
    other = replace(cell, seed=1)
    backbone = bench.backbone(cell)
    rows, others = (list(bench.prepared(c, backbone).rows) for c in (cell, other))
    for task, count in ((0, 40), (1, 16), (2, 16)):
        assert sum(row.task == task for row in rows) == sum(row.task == task for row in others) == count
    assert {row for row in rows if not row.task} == {row for row in others if not row.task}
    assert {row for row in rows if row.task} != {row for row in others if row.task}

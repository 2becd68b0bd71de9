"""``select_by=metric``: the state with the best mean of the tasks' metrics on held-out training rows is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtlbench import hookimpl
from mtlbench.api.cell import Cell
from mtlbench.api.record import Record
from mtlbench.backbones.machine import axis_seed
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_cell
from mtlbench.cells.rebuild import rebuild
from mtlbench.data.lm_task import load_lm_task
from mtlbench.data.source import find_task
from mtlbench.evaluation.evaluate import evaluate
from mtlbench.files.stop_request import Stopped, StopRequest
from mtlbench.observers.events import Events
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.plugins import load_suite
from mtlbench.store import RunFolder
from mtlbench.training.splits import carve

WORDS = {"steps": 24, "batch_size": 8, "train_rows": 120, "eval_rows": 4, "evals_per_run": 6, "held_out": 0.2}
TASKS = "glue/rte,glue/cola"


def cell_of(methods: str = "lora", tasks: str = TASKS, model: str = "demo", **words: object) -> Cell:
    plan = make_plan(Request(methods=methods, tasks=tasks, model=model, protocol={**WORDS, **words}))
    (cell,) = plan.cells
    return cell


def ran(cell: Cell, folder: RunFolder, stop_at: int | None = None) -> Record:
    folder.preflight()
    stop = StopRequest()

    class Asks:
        @hookimpl
        def mtlbench_step_finished(self, step: int) -> None:
            stop.requested = step == stop_at

    bench = Bench(device="cpu", threads=1, data="demo")
    record = run_cell(cell, bench=bench, folder=folder, events=Events({"asks": Asks()}), stop=stop, checkpoint_s=1e9)
    assert record.status == "ok", record.failure
    return record


def weights(cell: Cell, folder: RunFolder) -> dict[str, torch.Tensor]:
    (path,) = folder.adapter(cell.key).glob("*.safetensors")
    return load_file(path)


def test_the_first_state_with_the_best_metric_is_kept_and_training_itself_is_as_with_the_loss(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    by_loss, by_metric = (ran(cell_of(select_by=how, patience=6), folder) for how in ("loss", "metric"))
    assert "stop_scores" not in by_loss.notes and by_loss.key != by_metric.key
    assert by_loss.notes["stop_losses"] == by_metric.notes["stop_losses"], "scoring draws nothing that training draws"
    scores = dict(by_metric.notes["stop_scores"])
    best = max(scores.values())
    assert by_metric.notes["best_step"] == min(step for step, score in scores.items() if score == best)
    assert by_metric.notes["best_step"] != by_loss.notes["best_step"], "or the test says nothing"

    # The adapter as saved, scored on the validation split as tasks of their own.
    cell = by_metric.cell
    bench = Bench(device="cpu", threads=1, data="demo")
    backbone = bench.backbone(cell)
    prepared = bench.prepared(cell, backbone)
    stop = carve(prepared.rows, held_out=0.2, seed=axis_seed(cell.seed, "split")).stop
    rebuilt = rebuild(by_metric, folder.adapter(cell.key))
    tasks = {}
    for at, name in enumerate(cell.tasks):
        task, lm_task = find_task({"glue": load_suite("glue")}, name), prepared.lm_tasks[name]
        rows = lm_task.training_docs()
        chosen = rows.select([row.doc for row in stop if row.task == at])
        tasks[name] = load_lm_task(task, {task.train_split: rows, task.eval_split: chosen}, name=name)
    found = evaluate(
        rebuilt.model,
        backbone.tokenizer,
        architecture="causal",
        lm_tasks=tasks,
        task_ids={name: at for at, name in enumerate(cell.tasks)},
        metrics={name: task.metrics for name, task in prepared.tasks.items()},
        routing=rebuilt.setup.routing,
        max_length=cell.protocol.max_length,
        token_budget=1024,
        eval_rows=None,
    )
    assert sum(score.score for score in found.scores.values()) / 2 == pytest.approx(best)
    assert {score.rows for score in found.scores.values()} == {12}


def test_training_stops_after_as_many_scores_without_a_better_one(tmp_path: Path) -> None:
    record = ran(cell_of(select_by="metric", patience=2), RunFolder(tmp_path))
    scores = [score for _, score in record.notes["stop_scores"]]
    waited = [all(later <= max(scores[: at + 1]) for later in scores[at + 1 : at + 3]) for at in range(len(scores))]
    assert record.notes["stopped_early"] and len(scores) < 6
    assert waited.index(True) == len(scores) - 3, "not sooner and not later"


@pytest.mark.parametrize("stop_at", [5, 12])
def test_interrupted_it_ends_as_undisturbed(tmp_path: Path, stop_at: int) -> None:
    cell, whole, parts = cell_of(select_by="metric"), RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    undisturbed = ran(cell, whole)
    with pytest.raises(Stopped):
        ran(cell, parts, stop_at)
    resumed = ran(cell, parts)
    assert resumed.provenance["resumed_from_step"] == [stop_at]
    assert resumed.notes == undisturbed.notes and resumed.scores == undisturbed.scores
    one, other = weights(cell, whole), weights(cell, parts)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("methods", "tasks", "model"),
    [
        ("lora_st", TASKS, "demo"),
        ("prefixnas[layers=1,width=8,prefix_length=2]+lora", TASKS, "demo"),
        ("prompt_tuning[prompt_length=3]", "attempt21/squad", "demo-t5"),
        ("mtl_lora", "glue/stsb", "demo-t5"),
    ],
)
def test_methods_in_stages_and_generated_answers_are_scored_too(
    tmp_path: Path, methods: str, tasks: str, model: str
) -> None:
    cell = cell_of(methods, tasks, model, select_by="metric", steps=8, evals_per_run=2, train_rows=60, batch_size=4)
    scores = ran(cell, RunFolder(tmp_path)).notes["stop_scores"]
    assert scores and all(-100 <= score <= 100 for _, score in scores)

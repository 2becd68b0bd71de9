"""Evaluation rows choose nothing: with other ones in their place, training and tuning end in the same bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import load_file

from mtlbench.api.record import Record
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_cell
from mtlbench.observers.events import Events
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.plugins import load_suite
from mtlbench.store import RunFolder

TASKS = "glue/rte,glue/sst2"
WORDS = {"steps": 8, "batch_size": 8, "train_rows": 60, "evals_per_run": 4, "patience": 1, "learning_rate": 3e-2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two data folders with the same training rows; in the second every evaluation label is turned around."""
    made = []
    for name in ("one", "other"):
        folder = tmp_path_factory.mktemp(name)
        suite = load_suite("glue")
        assert suite.demo is not None
        for config in ("rte", "sst2"):
            for split in ("train", "validation"):
                rows = suite.demo("nyu-mll/glue", config, split)
                if split == "validation" and name == "other":
                    rows = [{**row, "label": 1 - row["label"]} for row in reversed(rows)]
                path = folder / "nyu-mll" / "glue" / config / f"{split}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        made.append(folder)
    return made


def ran(data: Path, out: Path, methods: str = "lora", **words: object) -> tuple[Record, dict[str, torch.Tensor]]:
    plan = make_plan(Request(methods=methods, tasks=TASKS, data=str(data), protocol={**WORDS, **words}))
    folder = RunFolder(out)
    folder.preflight()
    (cell,) = plan.cells
    record = run_cell(cell, bench=Bench(device="cpu", threads=1, data=str(data)), folder=folder, events=Events({}))
    assert record.status == "ok", record.failure
    (path,) = folder.adapter(cell.key).glob("*.safetensors")
    return record, load_file(path)


@pytest.mark.parametrize(
    ("methods", "words"),
    [("lora", {}), ("prefixnas[layers=2,prefix_length=3,width=16]", {}), ("lora", {"select_by": "metric"})],
)
def test_other_evaluation_rows_change_the_scores_and_nothing_else(folders, tmp_path, methods, words):
    (one, weights), (other, again) = (ran(data, tmp_path / data.name, methods, **words) for data in folders)
    assert one.cell.protocol.data != other.cell.protocol.data and one.key != other.key
    assert one.notes["stop_losses"] == other.notes["stop_losses"] and one.notes["stop_losses"]
    assert one.notes["best_step"] == other.notes["best_step"]
    assert one.notes.get("stop_scores") == other.notes.get("stop_scores")
    assert set(one.notes["validation_examples"]) == set(one.cell.tasks) and all(
        one.notes["validation_examples"].values()
    )
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)
    assert one.scores != other.scores


@pytest.mark.parametrize("words", [{"eval_from_train": 0.25}, {"holdout": 0.25}])
def test_scores_on_training_rows_do_not_know_the_official_evaluation_rows(folders, tmp_path, words):
    (one, weights), (other, again) = (ran(data, tmp_path / data.name, **words) for data in folders)
    assert one.scores == other.scores and all(torch.equal(weights[name], again[name]) for name in weights)

"""The gate of `mtlbench compare` on made-up predictions: what is a drop, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from record_builder import cell as make_cell

from mtlbench.api.record import Record, TaskScore
from mtlbench.api.study import no_predictions
from mtlbench.errors import RequestError
from mtlbench.results.regression import AVERAGE, RecordSet, changes
from mtlbench.statistics.answers import answers_in
from mtlbench.store import RunFolder

TASKS = ("glue/rte", "glue/sst2")
ROWS = 60


def side(folder: Path, *, right: float | dict[str, float], seeds=(0, 1), draw: int = 0, **changed) -> RecordSet:
    """Records whose predictions are right with this probability by task; every seed draws its own."""
    store, records = RunFolder(folder), {}
    for seed in seeds:
        random = np.random.default_rng([draw, seed])
        cell = make_cell(seed=seed, tasks=TASKS, **changed)
        rows, scores = [], {}
        for task in TASKS:
            share = right[task] if isinstance(right, dict) else right
            correct = random.random(ROWS) < share
            scores[task] = TaskScore(score=100 * correct.mean(), metrics={"acc": float(correct.mean())}, rows=ROWS)
            rows += [
                {
                    "task": task,
                    "doc_id": at,
                    "doc_hash": f"{task}{at}",
                    "gold": "a",
                    "prediction": "a" if ok else "b",
                    "loglikelihoods": [0.0, -1.0] if ok else [-1.0, 0.0],
                    "correct": bool(ok),
                    "metric_values": f'{{"acc": {float(ok)}}}',
                }
                for at, ok in enumerate(correct)
            ]
        record = Record(cell=cell, status="ok", scores=scores)
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        store.put_samples(record.key, rows)
        records[seed] = record
    return RecordSet(name=folder.name, records=records, predictions=answers_in(store, records.values()))


def test_a_drop_on_one_task_is_found_there(tmp_path):
    seeds = (0, 1, 2, 3)
    before = side(tmp_path / "a", right=0.9, seeds=seeds)
    after = side(tmp_path / "b", right={"glue/rte": 0.5, "glue/sst2": 0.9}, seeds=seeds, draw=1)
    rte, sst2, average = changes(before, after)
    assert rte.dropped and rte.verdict == "DROP" and rte.interval.high < 0
    assert not sst2.dropped and average.task == AVERAGE
    assert rte.interval.examples == ROWS and rte.interval.seeds == 4
    back = changes(after, before)
    assert not any(change.dropped for change in back) and back[0].verdict == "rise"


def test_one_seed_is_paired_over_its_examples(tmp_path):
    before = side(tmp_path / "a", right=0.95, seeds=(3,))
    (rte, *_) = changes(before, side(tmp_path / "b", right=0.3, seeds=(3,), draw=1))
    assert rte.dropped and rte.interval.seeds == 1


def test_a_collapse_without_any_variance_is_a_drop(tmp_path):
    (rte, *_) = changes(side(tmp_path / "a", right=1.0, seeds=(0,)), side(tmp_path / "b", right=0.0, seeds=(0,)))
    assert (rte.before, rte.after) == (100, 0) and rte.dropped


def test_without_predictions_one_seed_says_nothing(tmp_path):
    before, after = side(tmp_path / "a", right=1.0, seeds=(0,)), side(tmp_path / "b", right=0.0, seeds=(0,))
    (rte, *_) = changes(replace(before, predictions=no_predictions), after)
    assert rte.interval is None and not rte.dropped and rte.verdict.startswith("no interval")


def test_equal_sides_are_rarely_called_a_drop(tmp_path):
    called = 0
    for draw in range(20):
        before = side(tmp_path / f"a{draw}", right=0.7, draw=2 * draw)
        called += any(
            change.dropped for change in changes(before, side(tmp_path / f"b{draw}", right=0.7, draw=2 * draw + 1))
        )
    assert called <= 3


def test_what_differs_is_named(tmp_path):
    before = side(tmp_path / "a", right=0.9)
    cell = make_cell(seed=0)
    after = side(tmp_path / "b", right=0.9, model="demo-t5", protocol=replace(cell.protocol, batch_size=7))
    with pytest.raises(RequestError, match=r"backbone \(.* and demo-t5\).*batch_size \(\d+ and 7\)"):
        changes(before, after)
    with pytest.raises(RequestError, match="none is shared"):
        changes(before, side(tmp_path / "c", right=0.9, seeds=(8,)))

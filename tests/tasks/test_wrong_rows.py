"""Whatever column of whatever task is wrong, it is named with file, column and row before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from mtlbench.api.task import Task
from mtlbench.data.choose import open_source
from mtlbench.data.source import required_splits
from mtlbench.errors import DataError
from mtlbench_tasks.attempt21 import ATTEMPT21
from mtlbench_tasks.clue16 import CLUE16
from mtlbench_tasks.commonsense import COMMONSENSE
from mtlbench_tasks.commonsense_170k import COMMONSENSE_170K
from mtlbench_tasks.glue import GLUE
from mtlbench_tasks.mmlu import AUXILIARY, FIVE_SHOT, MMLU
from mtlbench_tasks.mmlu_superglue import MMLU_SUPERGLUE
from mtlbench_tasks.superglue import SUPERGLUE

CASES = [
    (suite, task)
    for suite in (
        GLUE, SUPERGLUE, COMMONSENSE, MMLU, FIVE_SHOT, AUXILIARY, COMMONSENSE_170K, MMLU_SUPERGLUE, CLUE16, ATTEMPT21
    )
    for task in suite.tasks[: 1 if suite in (MMLU, FIVE_SHOT) else None]
]  # fmt: skip
each_task = pytest.mark.parametrize(("suite", "task"), CASES, ids=[f"{s.name}/{t.name}" for s, t in CASES])


def spoilt(row: dict, column: str, value: object) -> dict:
    top, _, inner = column.partition(".")
    return row | {top: row[top] | {inner: value} if inner else value}


def written(folder: Path, task: Task, split: str, rows: list[dict]) -> str:
    path = folder / task.dataset / (task.config or "default") / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def said(folder: Path, task: Task) -> str:
    with pytest.raises(DataError) as error:
        open_source(str(folder), suites={}).splits(task)
    return str(error.value)


@each_task
def test_wrong_values_missing_columns_and_empty_splits_are_named(tmp_path, suite, task):
    rows = {split: suite.demo(task.dataset, task.config, split)[:5] for split in required_splits(task)}
    for split in rows:
        for good in rows:
            written(tmp_path, task, good, rows[good])
        assert task.columns
        for column, kind in task.columns.items():
            wrong = None if not isinstance(kind, tuple) else -1 if isinstance(kind[0], int) else "?"
            path = written(
                tmp_path, task, split, [*rows[split][:3], spoilt(rows[split][3], column, wrong), rows[split][4]]
            )
            told = said(tmp_path, task)
            assert path in told and f"row 3, column {column!r}" in told and repr(wrong) in told
            top = column.partition(".")[0]
            path = written(tmp_path, task, split, [{k: v for k, v in row.items() if k != top} for row in rows[split]])
            told = said(tmp_path, task)
            assert path in told and "lacks the column" in told and repr(column) in told
            path = written(tmp_path, task, split, [spoilt(row, column, {"x": 1}) for row in rows[split]])
            told = said(tmp_path, task)
            assert path in told and f"column {column!r}" in told and "type is struct" in told
        empty = pyarrow.Table.from_pylist(rows[split]).slice(0, 0)
        parquet.write_table(empty, written(tmp_path, task, split, rows[split]))
        assert f"Split {split!r} of task {task.name!r} is empty" in said(tmp_path, task)

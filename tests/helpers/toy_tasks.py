"""A folder that mirrors hub ids, and tasks of several kinds over it, all written by the tests."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

from mtlbench.api.task import Task, TaskSuite

RTE = Task(
    name="rte",
    yaml="lm_eval:glue/rte/default.yaml",
    metrics=("acc",),
    dataset="nyu-mll/glue",
    config="rte",
    columns={"sentence1": "text", "sentence2": "text", "label": (0, 1)},
)
WINOGRANDE = Task(
    name="winogrande",
    yaml="lm_eval:winogrande/default.yaml",
    metrics=("acc",),
    dataset="allenai/winogrande",
    config="winogrande_xl",
    columns={"sentence": "text", "option1": "text", "option2": "text", "answer": ("1", "2")},
)
ARC = Task(
    name="arc_easy",
    yaml="lm_eval:arc/arc_easy.yaml",
    metrics=("acc",),
    dataset="allenai/ai2_arc",
    config="ARC-Easy",
    columns={"question": "text", "choices.text": "texts", "choices.label": "texts", "answerKey": "text"},
)
SUITE = TaskSuite(name="toy", title="Toy", tasks=(RTE, WINOGRANDE, ARC))


def rte_rows(count: int, start: int = 0) -> list[dict]:
    return [
        {"sentence1": f"Fact {i}.", "sentence2": f"Claim {i}.", "label": i % 2, "idx": i}
        for i in range(start, start + count)
    ]


def winogrande_rows(count: int) -> list[dict]:
    return [
        {"sentence": f"Ann met Eve and _ left {i}.", "option1": "Ann", "option2": "Eve", "answer": str(i % 2 + 1)}
        for i in range(count)
    ]


def arc_rows(count: int) -> list[dict]:
    choices = {"text": ["moss", "iron", "rain"], "label": ["A", "B", "C"]}
    return [{"question": f"Which grows {i}?", "choices": choices, "answerKey": "ABC"[i % 3]} for i in range(count)]


def write(folder: Path, task: Task, **splits: list[dict]) -> Path:
    """Write the splits of a task where a hub mirror has them; the folder is returned."""
    for split, rows in splits.items():
        path = folder / task.dataset / (task.config or "default") / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return folder

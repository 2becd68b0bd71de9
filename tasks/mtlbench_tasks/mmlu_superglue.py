"""MMLU and four SuperGLUE tasks trained together, as in MultiLoRA's comparison.

MMLU is one task: trained 0-shot on its auxiliary examples, evaluated 5-shot with the ``dev`` examples of the subject.
The SuperGLUE tasks are 0-shot. Every task is scored with accuracy.

Source: Wang et al. 2023, MultiLoRA (arXiv 2311.11501); Hendrycks et al. 2021 (arXiv 2009.03300); Wang et al. 2019
(arXiv 1905.00537).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mtlbench import Task, TaskSuite, hookimpl
from mtlbench_tasks import mmlu, superglue
from mtlbench_tasks.fingerprint import source_digest

TABLES = ("peml/table-5",)
FOUR = ("boolq", "multirc", "rte", "wic")
MMLU = replace(
    mmlu.ALL,
    name="mmlu",
    shots=5,
    shots_split="dev",
    shots_by="subject",
    columns={**mmlu.ALL.columns, "subject": "text"},
    tables=TABLES,
)
TASKS: tuple[Task, ...] = (
    MMLU,
    *(replace(task, metrics=("acc",), tables=TABLES) for task in superglue.TASKS if task.name in FOUR),
)


def _demo(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    from mtlbench_tasks.demo_mmlu import mmlu_rows
    from mtlbench_tasks.demo_superglue import superglue_rows

    return (mmlu_rows if dataset == MMLU.dataset else superglue_rows)(config or "", split)


def _demo_fingerprint() -> str:
    return source_digest("mtlbench_tasks.demo_mmlu", "mtlbench_tasks.demo_superglue")


MMLU_SUPERGLUE = TaskSuite(
    name="mmlu_superglue",
    title="MMLU (5-shot) and four SuperGLUE tasks",
    tasks=TASKS,
    demo=_demo,
    demo_fingerprint=_demo_fingerprint,
    presets={"mmlu_superglue/quick": {"tasks": "mmlu_superglue", "train_rows": 100, "eval_rows": 40, "epochs": 1.0}},
)


@hookimpl
def mtlbench_tasks() -> tuple[TaskSuite, ...]:
    """The suite of MMLU with four SuperGLUE tasks."""
    return (MMLU_SUPERGLUE,)

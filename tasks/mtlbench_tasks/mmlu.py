"""MMLU: 57 subjects of four-way questions, with lm-eval's stock prompts, scored on the test split, as usual.

Source: Hendrycks et al. 2021, arXiv 2009.03300; data as in ``cais/mmlu`` on the hub. Three suites:

- ``mmlu``: each subject 0-shot, trained on its five ``dev`` examples;
- ``mmlu_5shot``: the same with the ``dev`` examples before every prompt; in training, the four others before each of
  them;
- ``mmlu_auxiliary``: all subjects as one task, trained on the 99,842 auxiliary examples, for mixtures with other
  suites; its score is lm-eval's ``mmlu``, accuracy over all questions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mtlbench import Task, TaskSuite, hookimpl
from mtlbench_tasks.fingerprint import source_digest
from mtlbench_tasks.subjects import SUBJECTS


def _task(name: str, yaml: str, train_split: str) -> Task:
    return Task(
        name=name,
        yaml=yaml,
        metrics=("acc",),
        dataset="cais/mmlu",
        config=name,
        train_split=train_split,
        eval_split="test",
        columns={"question": "text", "choices": "texts", "answer": (0, 1, 2, 3)},
        licence="MIT",
        source="MMLU: Hendrycks et al. 2021, arXiv 2009.03300",
        tables=("peml/table-10",),
    )


ZERO_SHOT = tuple(_task(subject, f"lm_eval:mmlu/default/mmlu_{subject}.yaml", "dev") for subject in SUBJECTS)
ALL = _task("all", "mtlbench_tasks:yaml/mmlu_all.yaml", "auxiliary_train")


def _demo(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    from mtlbench_tasks.demo_mmlu import mmlu_rows

    return mmlu_rows(config or "", split)


def _demo_fingerprint() -> str:
    return source_digest("mtlbench_tasks.demo_mmlu")


def _suite(name: str, title: str, tasks: tuple[Task, ...]) -> TaskSuite:
    quick = {"tasks": name, "train_rows": 100, "eval_rows": 40, "epochs": 1.0}
    return TaskSuite(
        name=name,
        title=title,
        tasks=tasks,
        demo=_demo,
        demo_fingerprint=_demo_fingerprint,
        presets={f"{name}/quick": quick},
    )


MMLU = _suite("mmlu", "MMLU, 0-shot", ZERO_SHOT)
FIVE_SHOT = _suite("mmlu_5shot", "MMLU, 5-shot", tuple(replace(task, shots=5) for task in ZERO_SHOT))
AUXILIARY = _suite("mmlu_auxiliary", "MMLU, trained on its auxiliary rows", (ALL,))


@hookimpl
def mtlbench_tasks() -> tuple[TaskSuite, ...]:
    """The three MMLU suites."""
    return (MMLU, FIVE_SHOT, AUXILIARY)

"""Scores of constant, correct and wrong answers by a task's metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mtlbench.api.task import Task
from mtlbench.data.examples import gold_indices, gold_text

if TYPE_CHECKING:
    from mtlbench.compat import ConfigurableTask

Doc = dict[str, Any]
Answer = Callable[[Doc], list[Any]]
"""From an example to what a model would return for its requests."""


def score(lm_task: ConfigurableTask, task: Task, answer: Answer) -> float:
    """Mean of the task's metrics over its evaluation examples, in percent."""
    values: dict[str, list[Any]] = {}
    for doc in lm_task.eval_docs:
        for metric, value in lm_task.process_results(doc, answer(doc)).items():
            values.setdefault(metric, []).append(value)
    names = [metric.partition(",")[0] for metric in task.metrics]
    return 100 * sum(float(lm_task.aggregation()[name](values[name])) for name in names) / len(names)


def generates(lm_task: ConfigurableTask) -> bool:
    """Whether the task's answers are generated and not multiple choice."""
    return bool(lm_task.OUTPUT_TYPE == "generate_until")


def oracle(lm_task: ConfigurableTask, *, right: bool) -> Answer:
    """A model that gives the correct answer to every example, or a wrong one."""

    def answer(doc: Doc) -> list[Any]:
        if generates(lm_task):
            return [gold_text(lm_task, doc).strip() if right else "no such answer"]
        golds, total = gold_indices(lm_task, doc), len(lm_task.doc_to_choice(doc))
        return _choose(golds[0] if right else next((i for i in range(total) if i not in golds), golds[0]), total)

    return answer


def best_constant(lm_task: ConfigurableTask, task: Task) -> float:
    """The best score, in percent, of a model that gives every example the same answer."""
    docs = list(lm_task.eval_docs)
    if generates(lm_task):
        texts = dict.fromkeys(gold_text(lm_task, doc).strip() for doc in docs)
        return max(score(lm_task, task, lambda _, text=text: [text]) for text in texts)  # type: ignore[misc]
    sizes = [len(lm_task.doc_to_choice(doc)) for doc in docs]
    return max(
        score(lm_task, task, lambda doc, i=i: _choose_of(lm_task, doc, i))  # type: ignore[misc]
        for i in range(max(sizes))
    )


def _choose_of(lm_task: ConfigurableTask, doc: Doc, number: int) -> list[Any]:
    total = len(lm_task.doc_to_choice(doc))
    return _choose(min(number, total - 1), total)


def _choose(chosen: int, total: int) -> list[Any]:
    return [(-1.0 if i == chosen else -1000.0, i == chosen) for i in range(total)]

"""Checks of suites, task by task on their data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mtlbench.api.task import Task, TaskSuite
from mtlbench.conformance.answers import oracle, score
from mtlbench.conformance.findings import PromiseBroken
from mtlbench.conformance.label_meaning import exchanged, renamed
from mtlbench.data.choose import open_source
from mtlbench.data.columns import LabelNamesError
from mtlbench.data.examples import evaluation_golds, question, training_pairs
from mtlbench.data.lm_task import load_lm_task
from mtlbench.data.source import required_splits
from mtlbench.errors import MtlbenchError
from mtlbench.plugins import raised


@dataclass(frozen=True)
class TaskFinding:
    """The outcome of one check of one task."""

    task: str
    """Full name, such as ``superglue/rte``."""
    check: str
    ok: bool
    message: str
    """The promise, or what was observed."""


CHECKS: dict[str, str] = {
    "statement": "licence, source and metrics are stated, and the type of every column",
    "splits": "the stated splits exist, with the stated columns and values",
    "load": "the YAML loads and has the stated metrics",
    "prompts": "every training and evaluation row renders a prompt, its label is one of its choices",
    "labels": "label names agree in both splits, and a bag of words predicts the same labels in both",
    "overlap": "no evaluation row is also a training row",
    "metric": "the metrics are finite, and right answers score above wrong ones",
    "learn": "a toy model trained on some rows scores better on them than any constant answer",
}


def suite_findings(
    suite: TaskSuite,
    *,
    data: str = "demo",
    train: bool = True,
    on_finding: Callable[[TaskFinding], None] = lambda finding: None,
) -> tuple[TaskFinding, ...]:
    """All findings in the order of :data:`CHECKS`; a task ends with its first failure.

    Args:
        data: Source of the data: ``demo``, ``hub`` or a folder.
        train: Also run ``learn``, which trains a toy model: seconds per task, all others take much less.
        on_finding: Called with each finding.
    """
    found: list[TaskFinding] = []
    for finding in _findings(suite, data=data, train=train):
        on_finding(finding)
        found.append(finding)
    return tuple(found)


def _findings(suite: TaskSuite, *, data: str, train: bool) -> Iterator[TaskFinding]:
    source = open_source(data, suites={suite.name: suite})
    for task in suite.tasks:
        name = f"{suite.name}/{task.name}"
        state: dict[str, Any] = {"task": task, "name": name, "source": source}
        for check, run in _RUN.items():
            if check == "learn" and not train:
                continue
            try:
                run(state)
            except LabelNamesError as error:
                yield TaskFinding(name, "labels", False, str(error))
                break
            except (MtlbenchError, PromiseBroken) as error:
                yield TaskFinding(name, check, False, str(error))
                break
            except (Exception, SystemExit) as error:
                yield TaskFinding(name, check, False, f"raised {raised(error)}")
                break
            yield TaskFinding(name, check, True, CHECKS[check])


def _statement(state: dict[str, Any]) -> None:
    task: Task = state["task"]
    for field in ("licence", "source", "metrics", "columns"):
        _require(bool(getattr(task, field)), f"the task states no {field}: set Task.{field}")


def _splits(state: dict[str, Any]) -> None:
    state["source"].check(state["task"])
    state["splits"] = state["source"].splits(state["task"])
    wanted = set(required_splits(state["task"]))
    _require(set(state["splits"]) == wanted, f"the source gives {sorted(state['splits'])}, not {sorted(wanted)}")


def _load(state: dict[str, Any]) -> None:
    state["lm_task"] = load_lm_task(state["task"], state["splits"], name=state["name"])


def _prompts(state: dict[str, Any]) -> None:
    lm_task = state["lm_task"]
    evaluation_golds(lm_task)
    for pair in training_pairs(lm_task):
        text = bool(pair.context.strip() and pair.target.strip())
        _require(text, f"a training row gives an empty prompt or answer: {pair}")
    for doc in lm_task.eval_docs:
        contexts = lm_task.fewshot_context(doc, lm_task.config.num_fewshot, gen_prefix=lm_task.doc_to_prefix(doc))
        _require(all(text.strip() for text in _texts(contexts)), f"an evaluation row gives an empty prompt: {doc}")


def _labels(state: dict[str, Any]) -> None:
    lm_task = state["lm_task"]
    wrong = renamed(lm_task, state["splits"]) or exchanged(lm_task)
    _require(wrong is None, f"{wrong}: are the labels of one split numbered differently?")


def _overlap(state: dict[str, Any]) -> None:
    lm_task, task = state["lm_task"], state["task"]
    trained = {question(lm_task, doc) for doc in lm_task.training_docs()}
    both = [row for row, doc in enumerate(lm_task.eval_docs) if question(lm_task, doc) in trained]
    _require(
        not both,
        f"{len(both)} rows of split {task.eval_split!r} are also in {task.train_split!r}, the first are {both[:3]}: "
        "remove them from one of the two",
    )


def _metric(state: dict[str, Any]) -> None:
    lm_task = state["lm_task"]
    right, wrong = (score(lm_task, state["task"], oracle(lm_task, right=flag)) for flag in (True, False))
    message = f"right answers score {right:g}, wrong ones {wrong:g}: see the metric's order and aggregation"
    _require(math.isfinite(right) and math.isfinite(wrong) and right > wrong, message)


def _learn(state: dict[str, Any]) -> None:
    from mtlbench.conformance.learning import learn

    learned = learn(state["task"], state["splits"], name=state["name"])
    _require(
        learned.beats_chance,
        f"a toy model trained on {learned.rows} rows scores {learned.score:.1f} on them, a constant answer "
        f"{learned.constant:.1f}: is the trained answer the scored one, and does the prompt contain the information "
        "for it?",
    )


_RUN: dict[str, Callable[[dict[str, Any]], None]] = {
    "statement": _statement,
    "splits": _splits,
    "load": _load,
    "prompts": _prompts,
    "labels": _labels,
    "overlap": _overlap,
    "metric": _metric,
    "learn": _learn,
}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise PromiseBroken(message)


def _texts(contexts: str | list[str]) -> list[str]:
    return [contexts] if isinstance(contexts, str) else contexts

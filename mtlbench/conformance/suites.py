"""What every suite promises, checked task by task on its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtlbench.api.task import Task, TaskSuite
from mtlbench.conformance.answers import known as knowing
from mtlbench.conformance.answers import score
from mtlbench.conformance.findings import PromiseBroken
from mtlbench.conformance.label_meaning import exchanged, renamed
from mtlbench.data.choose import open_source
from mtlbench.data.examples import evaluation_golds, training_pairs
from mtlbench.data.lm_task import load_lm_task
from mtlbench.data.source import wanted_splits
from mtlbench.errors import MtlbenchError

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


@dataclass(frozen=True)
class TaskFinding:
    """The outcome of one check of one task."""

    task: str
    """Full name, such as ``superglue/rte``."""
    check: str
    ok: bool
    message: str
    """What holds, or what was seen."""


CHECKS: dict[str, str] = {
    "statement": "licence, source and metrics are stated, and every column with what it holds",
    "splits": "the stated splits are there, with the stated columns and values",
    "load": "the YAML loads and has the stated metrics",
    "prompts": "every training and evaluation row renders a prompt, its label is one of its choices",
    "labels": "the data's names of labels agree, and words that tell labels apart tell the same in both splits",
    "overlap": "no evaluation row is also a training row",
    "metric": "the metrics are finite, and right answers score above wrong ones",
    "learn": "a toy model trained on some rows answers them better than any one answer for all does",
}


def check_suite(suite: TaskSuite, *, data: str = "demo", train: bool = True) -> Iterator[TaskFinding]:
    """Findings as they are made, in the order of :data:`CHECKS`; a task's first failure ends it.

    Args:
        data: Where rows come from: ``demo``, ``hub`` or a folder.
        train: Also run ``learn``, which trains a toy model: seconds a task, all others take much less.
    """
    source = open_source(data, suites={suite.name: suite})
    for task in suite.tasks:
        name = f"{suite.name}/{task.name}"
        known: dict[str, Any] = {"task": task, "name": name, "source": source}
        for check, run in _RUN.items():
            if check == "learn" and not train:
                continue
            try:
                run(known)
            except (MtlbenchError, PromiseBroken) as error:
                yield TaskFinding(name, check, False, str(error))
                break
            except Exception as error:
                yield TaskFinding(name, check, False, f"raised {type(error).__name__}: {error}")
                break
            yield TaskFinding(name, check, True, CHECKS[check])


def _statement(known: dict[str, Any]) -> None:
    task: Task = known["task"]
    for field in ("licence", "source", "metrics", "columns"):
        _require(bool(getattr(task, field)), f"the task states no {field}: set Task.{field}")


def _splits(known: dict[str, Any]) -> None:
    known["source"].check(known["task"])
    known["splits"] = known["source"].splits(known["task"])
    wanted = set(wanted_splits(known["task"]))
    _require(set(known["splits"]) == wanted, f"the source gives {sorted(known['splits'])}, not {sorted(wanted)}")


def _load(known: dict[str, Any]) -> None:
    known["lm_task"] = load_lm_task(known["task"], known["splits"], name=known["name"])


def _prompts(known: dict[str, Any]) -> None:
    lm_task = known["lm_task"]
    evaluation_golds(lm_task)
    for pair in training_pairs(lm_task):
        text = bool(pair.context.strip() and pair.target.strip())
        _require(text, f"a training row gives an empty prompt or answer: {pair}")
    for doc in lm_task.eval_docs:
        contexts = lm_task.fewshot_context(doc, lm_task.config.num_fewshot, gen_prefix=lm_task.doc_to_prefix(doc))
        _require(all(text.strip() for text in _texts(contexts)), f"an evaluation row gives an empty prompt: {doc}")


def _labels(known: dict[str, Any]) -> None:
    lm_task = known["lm_task"]
    wrong = renamed(lm_task, known["splits"]) or exchanged(lm_task)
    _require(wrong is None, f"{wrong}: were the labels of one split numbered otherwise?")


def _overlap(known: dict[str, Any]) -> None:
    lm_task, task = known["lm_task"], known["task"]
    trained = {_asked(lm_task, doc) for doc in lm_task.training_docs()}
    both = [row for row, doc in enumerate(lm_task.eval_docs) if _asked(lm_task, doc) in trained]
    _require(
        not both,
        f"{len(both)} rows of split {task.eval_split!r} are also in {task.train_split!r}, the first are {both[:3]}: "
        "take them out of one of the two",
    )


def _metric(known: dict[str, Any]) -> None:
    lm_task = known["lm_task"]
    right, wrong = (score(lm_task, known["task"], knowing(lm_task, right=flag)) for flag in (True, False))
    told = f"right answers score {right:g}, wrong ones {wrong:g}: see the metric's order and aggregation"
    _require(math.isfinite(right) and math.isfinite(wrong) and right > wrong, told)


def _learn(known: dict[str, Any]) -> None:
    from mtlbench.conformance.learning import learn

    found = learn(known["task"], known["splits"], name=known["name"])
    _require(
        found.beats_chance,
        f"a toy model trained on {found.rows} rows scores {found.score:.1f} on them, one answer for all "
        f"{found.constant:.1f}: is the answer that is trained the one that is scored, and does the prompt hold all "
        "that tells it?",
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


def _asked(lm_task: ConfigurableTask, doc: dict[str, Any]) -> tuple[str, ...]:
    """What is asked, without worked examples, and the choices; of a task with several inputs how they go on."""
    choices = lm_task.doc_to_choice(doc) if lm_task.config.doc_to_choice is not None else []
    rest = [lm_task.doc_to_target(doc)] if lm_task.multiple_input else []
    return (*_texts(lm_task.fewshot_context(doc, 0)), *map(str, choices), *rest)


def _texts(contexts: str | list[str]) -> list[str]:
    return [contexts] if isinstance(contexts, str) else contexts

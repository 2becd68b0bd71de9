"""Evaluation of a model on tasks with lm-eval's evaluator and metrics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from mtlbench.api.record import TaskScore
from mtlbench.api.routing import Routing
from mtlbench.data.examples import evaluation_golds, gold_indices, gold_text
from mtlbench.data.lm_task import choose_rows, quiet_lm_eval
from mtlbench.errors import PluginError, did_you_mean
from mtlbench.evaluation.lm import RoutedLM
from mtlbench.tokens.requests import RequestTokens

if TYPE_CHECKING:
    from mtlbench.compat import ConfigurableTask


NO_CHOICES = -1
"""Index of the right choice in the sample of a generated answer."""


@dataclass(frozen=True)
class Evaluation:
    """Scores and predictions of a model."""

    scores: dict[str, TaskScore]
    """Full task name to score."""
    samples: list[dict[str, Any]]
    """One flat dict per document, all with the same keys; ``metric_values`` is JSON of the inputs of each metric."""


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    *,
    architecture: str,
    lm_tasks: Mapping[str, ConfigurableTask],
    task_ids: Mapping[str, int],
    metrics: Mapping[str, tuple[str, ...]],
    routing: Routing,
    max_length: int,
    token_budget: int,
    eval_rows: int | None,
    chat_template: bool = False,
    known: RequestTokens | None = None,
) -> Evaluation:
    """Score ``model`` on at most ``eval_rows`` documents of the evaluation split of each task, without dropout.

    ``token_budget`` limits rows x padded length of a batch; ``chat_template`` renders prompts as turns, few-shot
    examples as earlier ones; ``known`` are requests that were tokenised before.

    Raises:
        DataError: a label is not one of the choices, or an answer does not fit into ``max_length``.
        PluginError: a task lacks a metric that it names.
    """
    from lm_eval import evaluator

    rows = {name: choose_rows(len(task.validation_docs()), eval_rows) for name, task in lm_tasks.items()}
    golds = {name: evaluation_golds(task, rows[name]) for name, task in lm_tasks.items()}
    lm = RoutedLM(
        model,
        tokenizer,
        architecture=architecture,
        routing=routing,
        task_ids=task_ids,
        max_length=max_length,
        token_budget=token_budget,
        known=known,
    )
    training = model.training
    model.eval()
    try:
        with quiet_lm_eval():
            results = evaluator.evaluate(
                lm=lm,
                task_dict={"tasks": dict(lm_tasks), "groups": {}},
                samples=None if eval_rows is None else rows,
                bootstrap_iters=0,
                apply_chat_template=chat_template,
                fewshot_as_multiturn=chat_template,  # as lm-eval's command line does with --apply_chat_template
                log_samples=True,
            )
    finally:
        model.train(training)
    scores = {
        name: _score(name, results["results"][name], metrics[name], rows=len(rows[name]), golds=golds[name])
        for name in lm_tasks
    }
    samples = [
        _sample(name, lm_tasks[name], logged, golds[name], at)
        for name in lm_tasks
        for at, logged in enumerate(_first_filter(results["samples"][name]))
    ]
    return Evaluation(scores=scores, samples=samples)


def _score(
    name: str, results: Mapping[str, Any], metrics: tuple[str, ...], *, rows: int, golds: list[int] | None
) -> TaskScore:
    values = {metric: float(results[_key(name, results, metric)]) for metric in metrics}
    majority = 100 * Counter(golds).most_common(1)[0][1] / len(golds) if golds else None
    return TaskScore(score=100 * sum(values.values()) / len(values), metrics=values, rows=rows, majority=majority)


def _key(name: str, results: Mapping[str, Any], metric: str) -> str:
    """lm-eval's key ``metric,filter``; a metric named without a filter must have exactly one."""
    known = [key for key in results if "," in key and "_stderr," not in key]
    matches = [key for key in known if key == metric or key.partition(",")[0] == metric]
    if len(matches) != 1:
        raise PluginError(f"Task {name!r} names the metric {metric!r}. {did_you_mean(metric, known)}")
    return matches[0]


def _first_filter(logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [sample for sample in logged if sample["filter"] == logged[0]["filter"]]


def _sample(
    name: str, task: ConfigurableTask, logged: Mapping[str, Any], golds: list[int] | None, at: int
) -> dict[str, Any]:
    values = {metric: logged[metric] for metric in logged["metrics"]}
    if golds is None:
        gold, prediction, likelihoods = gold_text(task, logged["doc"]), str(logged["filtered_resps"][0]), []
        correct, right = values.get("exact_match", gold == prediction) == 1, NO_CHOICES
    else:
        choices = task.doc_to_choice(logged["doc"])
        likelihoods = [float(logprob) for logprob, _ in logged["filtered_resps"][: len(choices)]]
        best = int(np.argmax(likelihoods))
        gold, prediction = str(choices[golds[at]]), str(choices[best])
        correct = best in gold_indices(task, logged["doc"])
        right = best if correct else golds[at]
    return {
        "task": name,
        "doc_id": int(logged["doc_id"]),
        "doc_hash": str(logged["doc_hash"]),
        "gold": gold,
        "gold_index": right,
        "prediction": prediction,
        "loglikelihoods": likelihoods,
        "correct": bool(correct),
        "metric_values": json.dumps(values, default=_plain),
    }


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)

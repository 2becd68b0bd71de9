"""Targets and metrics of ``squad.yaml`` and ``mrqa.yaml``: F1 and exact match, the best over the right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlbench_tasks.squad import f1, words


def squad_target(doc: Mapping[str, Any]) -> str:
    """The first answer, after a blank."""
    return f" {doc['answers']['text'][0]}"


def mrqa_target(doc: Mapping[str, Any]) -> str:
    """The first answer, after a blank."""
    return f" {doc['answers'][0]}"


def process_squad(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores of the generated answer."""
    return _scores(results[0], doc["answers"]["text"])


def process_mrqa(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores of the generated answer."""
    return _scores(results[0], doc["answers"])


def _scores(made: str, answers: Sequence[str]) -> dict[str, float]:
    said, right = words(made), [words(answer) for answer in answers]
    return {"f1": max(f1(said, answer) for answer in right), "exact_match": float(said in right)}

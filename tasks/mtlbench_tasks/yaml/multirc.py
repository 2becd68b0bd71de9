"""Choices and metrics of ``multirc.yaml``.

Source: SuperGLUE (Wang et al. 2019, arXiv 1905.00537, section 3): F1 over all answers, exact match over questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Answered = tuple[int, int, int]
"""Question, label, predicted label."""


def choices(doc: Mapping[str, Any]) -> list[str]:
    """What lm-eval's stock task scores for label 0 and label 1."""
    return [f"{doc['answer']}\nIs the answer correct? {word}" for word in ("yes", "no")]


def process_results(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float | Answered]:
    """Whether the more likely choice is right, and what ``f1`` and ``em`` need."""
    predicted = int(np.argmax([logprob for logprob, _ in results]))
    answered = (int(doc["idx"]["question"]), int(doc["label"]), predicted)
    return {"acc": float(predicted == doc["label"]), "f1": answered, "em": answered}


def f1(answers: Sequence[Answered]) -> float:
    """F1 of the label 1, a right answer, over all answers; 0 where there is none and none is predicted."""
    found = sum(label and predicted for _, label, predicted in answers)
    either = sum(label + predicted for _, label, predicted in answers)
    return 2 * found / either if either else 0.0


def em(answers: Sequence[Answered]) -> float:
    """Share of questions whose answers are all judged rightly."""
    right: dict[int, bool] = {}
    for question, label, predicted in answers:
        right[question] = right.get(question, True) and label == predicted
    return sum(right.values()) / len(right)

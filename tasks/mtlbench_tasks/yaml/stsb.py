"""Answers and metrics of ``stsb.yaml``.

Source: T5 (Raffel et al. 2020, arXiv 1910.10683, section 2.4): similarity rounded to the nearest 0.2, written as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CHOICES = [f"{step / 5:.1f}" for step in range(26)]
"""``0.0``, ``0.2``, ... ``5.0``."""


def choices(doc: Mapping[str, Any]) -> list[str]:
    """The 26 answers, the same for every row."""
    return CHOICES


def gold(doc: Mapping[str, Any]) -> int:
    """Number of the answer nearest to the row's label.

    Raises:
        ValueError: the label is no number from 0 to 5.
    """
    label = doc["label"]
    if not isinstance(label, int | float) or not 0 <= label <= 5:
        raise ValueError(f"the label {label!r} is no similarity from 0 to 5")
    return round(label * 5)


def process_results(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, tuple[float, float]]:
    """Label and predicted similarity for both metrics, from the ``(log-likelihood, greedy)`` of each answer."""
    predicted = int(np.argmax([logprob for logprob, _ in results])) / 5
    pair = (float(doc["label"]), predicted)
    return {"pearson": pair, "spearman": pair}


def pearson(pairs: Sequence[tuple[float, float]]) -> float:
    """Linear correlation of labels and predictions; 0 where one of them is constant."""
    labels, predicted = np.asarray(pairs, dtype=np.float64).T
    return _correlation(labels, predicted)


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Rank correlation, ties ranked by their mean; 0 where one side is constant."""
    from scipy.stats import rankdata

    labels, predicted = np.asarray(pairs, dtype=np.float64).T
    return _correlation(rankdata(labels), rankdata(predicted))


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])

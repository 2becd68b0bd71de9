"""How far the probabilities of a task's choices are from what happened, from the stored log-likelihoods.

The probabilities of a document are the softmax over the log-likelihoods of its choices, not divided by their lengths,
as ``acc`` chooses. The expected calibration error is that of Guo et al. 2017 (ICML), with 15 bins of equal width over
the probability of the chosen answer. The Brier score is that of Brier 1950 for several classes: the squared distance of
the probabilities to the right answer, summed over the choices, from 0 to 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtlbench.api.study import Calibration

BINS = 15
UNKNOWN = -1
"""Index of a right choice that is not known."""
Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


def calibration(
    likelihoods: Numbers, counts: Indices, *, correct: NDArray[np.bool_], right: Indices
) -> Calibration | None:
    """The calibration on documents with ``counts [documents]`` choices each.

    Args:
        likelihoods: Log-likelihoods of all choices in nats, document by document ``[sum of counts]``.
        correct: Whether the likeliest choice of each document is right, the first of equal ones.
        right: Index of the right choice of each document, or :data:`UNKNOWN`.

    Returns:
        ``None`` without documents, with a document without choices, or where a probability is undefined. Without the
        right choice of every document there is no Brier score.
    """
    if not len(counts) or not counts.all():
        return None
    firsts = np.cumsum(counts) - counts
    highest = np.maximum.reduceat(likelihoods, firsts)
    with np.errstate(invalid="ignore"):
        shares = np.exp(likelihoods - np.repeat(highest, counts))
    totals = np.add.reduceat(shares, firsts)
    if not np.isfinite(totals).all():
        return None
    probabilities = shares / np.repeat(totals, counts)
    confidence = np.maximum.reduceat(probabilities, firsts)
    known = right != UNKNOWN
    of_right = probabilities[firsts + np.where(known, right, 0)]
    return Calibration(
        ece=_expected_error(confidence, correct),
        brier=float((np.add.reduceat(probabilities**2, firsts) - 2 * of_right + 1).mean()) if known.all() else None,
    )


def _expected_error(confidence: Numbers, right: NDArray[np.bool_]) -> float:
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def right_choices(
    chosen: Indices, counts: Indices, correct: NDArray[np.bool_], *, texts: Sequence[str], golds: Sequence[str]
) -> Indices:
    """The index of the right choice of each document, from predictions that do not store it.

    It is the chosen one where that is correct, and the other one of two. Of more choices it is known where they are the
    same labels in every document: then the text of an answer has one index, which the answers that were chosen show.

    Args:
        chosen: Index of the likeliest choice of each document.
        texts: Text of that choice.
        golds: Text of the right one.
    """
    right = np.where(correct, chosen, UNKNOWN)
    right = np.where((right == UNKNOWN) & (counts == 2), 1 - chosen, right)
    if (right == UNKNOWN).any() and len(set(counts.tolist())) == 1:
        indices: dict[str, set[int]] = {}
        for text, index in zip(texts, chosen.tolist(), strict=True):
            indices.setdefault(text, set()).add(index)
        if all(len(found) == 1 for found in indices.values()):
            of_text = {text: next(iter(found)) for text, found in indices.items()}
            known = np.array([of_text.get(gold, UNKNOWN) for gold in golds], dtype=np.int64)
            right = np.where(right == UNKNOWN, known, right)
    return right

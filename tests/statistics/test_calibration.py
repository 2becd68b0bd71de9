"""Calibration against numbers worked out by hand, and against scikit-learn where it is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from record_builder import cell, done

from mtlbench.statistics.answers import answers_in
from mtlbench.statistics.calibration import UNKNOWN, calibration, right_choices
from mtlbench.store import RunFolder


def of(*probabilities: list[float], right: list[int], scale: float = -3.0):
    """The calibration of documents whose choices have these probabilities, all likelihoods shifted alike."""
    likelihoods = np.array([math.log(p) + scale for row in probabilities for p in row])
    counts = np.array([len(row) for row in probabilities])
    chosen = np.array([int(np.argmax(row)) for row in probabilities])
    return calibration(likelihoods, counts, correct=chosen == np.array(right), right=np.array(right))


def test_two_bins_by_hand():
    """Confidences 0.9, 0.9 (one right) and 0.6 (right): bins (0.867, 0.933] and (0.533, 0.6]."""
    found = of([0.9, 0.1], [0.1, 0.9], [0.4, 0.6], right=[0, 0, 1])
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.9) + 1 * abs(1 - 0.6)) / 3)
    assert found.brier == pytest.approx((2 * 0.1**2 + 2 * 0.9**2 + 2 * 0.4**2) / 3)


def test_overconfidence_and_doubt_in_one_bin_cancel_and_in_two_add_up():
    within = of([0.70, 0.30], [0.72, 0.28], right=[0, 1])
    apart = of([0.55, 0.45], [0.95, 0.05], right=[0, 1])
    assert within.ece == pytest.approx(abs(1 - 1.42) / 2)
    assert apart.ece == pytest.approx((0.45 + 0.95) / 2)


def test_choices_may_differ_in_number_and_certainty_is_perfect():
    mixed = of([0.5, 0.3, 0.2], [0.25, 0.75], right=[0, 1])
    assert mixed.brier == pytest.approx(((0.25 + 0.09 + 0.04) + 2 * 0.25**2) / 2)
    sure = calibration(np.array([0.0, -np.inf]), np.array([2]), correct=np.array([True]), right=np.array([0]))
    assert (sure.ece, sure.brier) == (0.0, 0.0)


def test_what_is_undefined_has_none():
    nothing = np.array([], dtype=np.int64)
    assert calibration(np.array([]), nothing, correct=nothing == 0, right=nothing) is None
    nan = np.array([np.nan, -1.0])
    assert calibration(nan, np.array([2]), correct=np.array([True]), right=np.array([0])) is None
    unknown = calibration(np.array([-1.0, -2, -3]), np.array([3]), correct=np.array([False]), right=np.array([UNKNOWN]))
    assert unknown.brier is None and unknown.ece == pytest.approx(1 / (1 + math.exp(-1) + math.exp(-2)))


def test_brier_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    likelihoods, right = generator.normal(-5, 2, (50, 4)), generator.integers(0, 4, 50)
    shares = np.exp(likelihoods) / np.exp(likelihoods).sum(1, keepdims=True)
    found = calibration(
        likelihoods.ravel(), np.full(50, 4), correct=likelihoods.argmax(1) == right, right=right.astype(np.int64)
    )
    assert found is not None
    expected = metrics.brier_score_loss(right, shares, labels=[0, 1, 2, 3], scale_by_half=False)
    assert found.brier == pytest.approx(expected)


def test_the_right_choice_of_earlier_predictions_is_found_where_they_show_it():
    def found(chosen, counts, correct, texts, golds):
        return right_choices(np.array(chosen), np.array(counts), np.array(correct), texts=texts, golds=golds).tolist()

    assert found([0, 1], [2, 2], [False, True], ["x", "y"], ["?", "y"]) == [1, 1]
    labels = found([0, 1, 2], [3, 3, 3], [False, True, False], ["a", "b", "c"], ["c", "b", "b"])
    assert labels == [2, 1, 1]
    own_texts = found([0, 1], [3, 3], [False, True], ["this", "that"], ["other", "that"])
    assert own_texts == [UNKNOWN, 1]
    shuffled = found([0, 1, 2], [3, 3, 3], [True, True, False], ["a", "a", "b"], ["a", "a", "a"])
    assert shuffled == [0, 1, UNKNOWN]


def stored(folder: RunFolder, rows: list[dict]):
    record = done(cell(), 60.0, 20.0)
    folder.put_samples(record.key, rows)
    return answers_in(folder, [record])(record.key)


def sample(task: str, number: int, likelihoods: list[float], gold: int, **more) -> dict:
    best = int(np.argmax(likelihoods)) if likelihoods else 0
    return {
        "task": task, "doc_id": number, "doc_hash": f"{task}{number}", "gold": f"c{gold}", "prediction": f"c{best}",
        "loglikelihoods": likelihoods, "correct": best == gold, "metric_values": "{}", **more,
    }  # fmt: skip


@pytest.mark.parametrize("indexed", [False, True])
def test_predictions_give_the_same_with_the_index_and_without(tmp_path, indexed):
    folder = RunFolder(tmp_path / "run")
    folder.preflight()
    likelihoods = [[-1.0, -2.0, -4.0], [-3.0, -1.0, -2.0], [-5.0, -4.0, -1.0]]
    golds = [0, 2, 1]
    rows = [
        sample("a/x", at, row, gold, **({"gold_index": gold} if indexed else {}))
        for at, (row, gold) in enumerate(zip(likelihoods, golds, strict=True))
    ]
    rows += [sample("a/text", 0, [], 0, **({"gold_index": -1} if indexed else {}))]
    found = stored(folder, rows)
    shares = [np.exp(row) / np.exp(row).sum() for row in np.array(likelihoods)]
    brier = np.mean([((share - np.eye(3)[gold]) ** 2).sum() for share, gold in zip(shares, golds, strict=True)])
    assert found["a/x"].calibration.brier == pytest.approx(brier)
    assert found["a/x"].calibration.ece == pytest.approx(
        sum(abs((at == 0) - share.max()) for at, share in enumerate(shares)) / 3
    )
    assert found["a/text"].calibration is None

"""Whether labels mean the same in the training and the evaluation split.

There are two tests. First, if the data names its labels (``datasets.ClassLabel``), the names must be the same in both
splits, and a name that is one of the choices must be the correct choice. Second, a bag-of-words model trained on
training examples predicts evaluation examples; if a permutation of its predicted labels fits far better, the labels of
one split are permuted. This cannot detect permuted labels if a bag of words does not predict the label, as in most
tasks about sentence pairs, or if the labels are permuted in the same way in both splits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtlbench.compat import multiple_input
from mtlbench.conformance.answers import generates
from mtlbench.data.examples import gold_indices, gold_text
from mtlbench.data.lm_task import choose_rows, quiet_lm_eval

if TYPE_CHECKING:
    import datasets

    from mtlbench.compat import ConfigurableTask

TRAIN_ROWS, EVAL_ROWS = 2000, 1000
MOST_LABELS = 20
"""A task with more distinct answers is not a classification task."""
SIGMAS = 4.0
"""Standard deviations by which a permutation must fit better than the labels as they are."""
BEYOND = 3.0
"""Standard deviations by which it must fit better than a constant answer, which a shift of class shares could cause."""
LONG = 20
"""Evaluation examples that repeat a training text of at least this many characters are skipped: in WNLI they have the
opposite label on purpose."""
_WORD = r"(?u)[\u3400-\u9fff]|\w+"
"""A word, or a Chinese character."""

Doc = dict[str, Any]


def renamed(lm_task: ConfigurableTask, splits: Mapping[str, datasets.Dataset]) -> str | None:
    """A sentence on how label names contradict each other or the choices; ``None`` if they do not."""
    first, *others = splits.items()
    for column, names in _named(first[1]).items():
        for split, rows in others:
            other_names = _named(rows).get(column, names)
            if other_names != names:
                return (
                    f"column {column!r} names its labels {names} in split {first[0]!r} and {other_names} in {split!r}"
                )
    if generates(lm_task) or multiple_input(lm_task):
        return None
    for split, docs in (
        (lm_task.config.training_split, lm_task.training_docs()),
        (lm_task.config.validation_split, lm_task.validation_docs()),
    ):
        known = _named(docs)
        for number, doc in enumerate(docs if known else ()):
            choices = [_plain(choice) for choice in lm_task.doc_to_choice(doc)]
            golds = gold_indices(lm_task, doc)
            for column, names in known.items():
                name = _plain(names[doc[column]]) if 0 <= doc[column] < len(names) else ""
                if name in choices and choices.index(name) not in golds:
                    return (
                        f"row {number} of split {split!r} has the label {names[doc[column]]!r} in column {column!r}, "
                        f"but its right answer is {lm_task.doc_to_choice(doc)[golds[0]]!r}"
                    )
    return None


def exchanged(lm_task: ConfigurableTask) -> str | None:
    """A sentence on a permutation of labels that fits bag-of-words predictions far better, or ``None``."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment
    from sklearn.feature_extraction.text import CountVectorizer  # type: ignore[import-untyped]
    from sklearn.naive_bayes import MultinomialNB  # type: ignore[import-untyped]
    from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]

    with quiet_lm_eval():
        trained, scored = lm_task.training_docs(), lm_task.validation_docs()
        seen = {text for doc in trained for text in _long(doc)}
        few = (doc for doc in scored.select(choose_rows(len(scored), EVAL_ROWS)) if seen.isdisjoint(_long(doc)))
        train = _labelled(lm_task, trained.select(choose_rows(len(trained), TRAIN_ROWS)))
        tested = _labelled(lm_task, few)
    labels = sorted({label for _, label in [*train, *tested]})
    if len(labels) > MOST_LABELS or len({label for _, label in train}) < 2 or not tested:
        return None
    bag = make_pipeline(CountVectorizer(token_pattern=_WORD, ngram_range=(1, 2), binary=True), MultinomialNB(alpha=0.1))
    try:
        bag.fit([text for text, _ in train], [label for _, label in train])
    except ValueError:  # no words at all
        return None
    number = {label: at for at, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=int)  # predicted x correct
    for predicted, (_, right) in zip(bag.predict([text for text, _ in tested]), tested, strict=True):
        counts[number[predicted], number[right]] += 1
    rows, exchange = linear_sum_assignment(counts, maximize=True)
    moved = [at for at in rows if exchange[at] != at]
    as_labelled, as_exchanged = sum(counts[at, at] for at in moved), sum(counts[at, exchange[at]] for at in moved)
    fit = int(counts[rows, exchange].sum())
    most = max(counts.sum(axis=0))  # of a constant answer
    if (
        as_exchanged - as_labelled <= SIGMAS * math.sqrt(max(1, as_labelled + as_exchanged))
        or fit - most <= BEYOND * math.sqrt(len(tested)) / 2
    ):
        return None
    pairs = ", ".join(f"{labels[at]!r} for {labels[exchange[at]]!r}" for at in moved if counts[at, exchange[at]])
    return (
        f"by a bag of words from the training rows, {as_exchanged} of {len(tested)} evaluation rows fit with {pairs}, "
        f"and {as_labelled} as they are labelled"
    )


def _labelled(lm_task: ConfigurableTask, docs: Iterable[Doc]) -> list[tuple[str, str]]:
    """Prompt and correct answer of each example, if all have the same choices or generate; empty for other tasks."""
    examples: list[tuple[str, str]] = []
    offered: Sequence[str] | None = None
    for doc in docs:
        if multiple_input(lm_task):
            return []
        if not generates(lm_task):
            choices = lm_task.doc_to_choice(doc)
            if offered not in (None, choices):
                return []
            offered = choices
        label = gold_text(lm_task, doc) if generates(lm_task) else str(offered[gold_indices(lm_task, doc)[0]])  # type: ignore[index]
        text = lm_task.fewshot_context(doc, 0, gen_prefix=lm_task.doc_to_prefix(doc))
        examples.append((str(text), label.strip()))
    return examples


def _long(doc: Doc) -> set[str]:
    return {value for value in doc.values() if isinstance(value, str) and len(value) >= LONG}


def _named(rows: datasets.Dataset) -> dict[str, list[str]]:
    return {column: list(kind.names) for column, kind in rows.features.items() if getattr(kind, "names", None)}


def _plain(text: str) -> str:
    return str(text).strip().casefold()

"""Demo data of ATTEMPT's tasks: those of other suites, and its own in their hub schemas."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from random import Random

from mtlbench.demo.grammar import sentence
from mtlbench.demo.language import compare, infer
from mtlbench.demo.lexicon import EVERYDAY
from mtlbench.demo.opinions import review
from mtlbench_tasks.demo_commonsense import commonsense_rows
from mtlbench_tasks.demo_glue import glue_rows
from mtlbench_tasks.demo_reading import Reading, read
from mtlbench_tasks.demo_rows import Draw, Row, draw_splits
from mtlbench_tasks.demo_superglue import superglue_rows


def _squad(rng: Random) -> tuple[str, list[Row]]:
    asked = read(rng)
    answers = {"text": [asked.answer], "answer_start": [asked.start]}
    row = {"id": "", "title": "A story", "context": asked.passage, "question": asked.question, "answers": answers}
    return asked.first, [row]


def _mrqa(rng: Random) -> tuple[str, list[Row]]:
    asked = read(rng)
    row = {"context": asked.passage, "question": asked.question, "answers": [asked.answer], "key": ""}
    return asked.first, [{**row, "labels": [_span(asked)]}]


def _span(asked: Reading) -> Row:
    return {"end": [asked.start + len(asked.answer) - 1], "start": [asked.start]}


def _yelp(rng: Random) -> tuple[str, list[Row]]:
    """Two sentences of one mind."""
    label = int(rng.random() < 0.5)
    first, second = (sentence(review(rng, good=bool(label))) for _ in range(2))
    return first, [{"text": f"{first} {second}", "label": label}]


def _scitail(rng: Random) -> tuple[str, list[Row]]:
    follows = rng.random() < 0.5
    pair = infer(rng, EVERYDAY, "follows" if follows else "open")
    label = "entails" if follows else "neutral"
    return pair.premise, [{"premise": pair.premise, "hypothesis": pair.hypothesis, "label": label}]


def _paws(rng: Random) -> tuple[str, list[Row]]:
    """The same in other words, or with one part made another."""
    pair = compare(rng, EVERYDAY, count=rng.choice((0, 1)))
    return pair.first, [{"id": 0, "sentence1": pair.first, "sentence2": pair.second, "label": int(not pair.changed)}]


_DRAWS: Mapping[tuple[str, str | None], tuple[Draw, str, str]] = {
    ("lucadiliello/naturalquestionsshortqa", None): (_mrqa, "validation", "key"),
    ("lucadiliello/hotpotqa", None): (_mrqa, "validation", "key"),
    ("lucadiliello/searchqa", None): (_mrqa, "validation", "key"),
    ("lucadiliello/newsqa", None): (_mrqa, "validation", "key"),
    ("fancyzhx/yelp_polarity", "plain_text"): (_yelp, "test", ""),
    ("allenai/scitail", "tsv_format"): (_scitail, "validation", ""),
    ("google-research-datasets/paws", "labeled_final"): (_paws, "validation", "id"),
    ("rajpurkar/squad", "plain_text"): (_squad, "validation", "id"),
}
"""Data set to how its rows are drawn, its evaluation split, and the column that numbers its rows."""
CONFIGS = tuple(_DRAWS)
TRAIN, EVALUATION = 320, 80


def attempt21_rows(dataset: str, config: str | None, split: str) -> list[Row]:
    """The rows of one split of one data set, with the hub's columns.

    Raises:
        KeyError: the data set or the split is not there.
    """
    if dataset == "nyu-mll/glue":
        return glue_rows(config or "", split)
    if dataset == "aps/super_glue":
        return superglue_rows(config or "", split)
    if dataset == "allenai/winogrande":
        return commonsense_rows(dataset, config, split)
    if (dataset, config) not in _DRAWS:
        raise KeyError(f"no data set {dataset!r} with configuration {config!r}: known are {CONFIGS}")
    known = ("train", _DRAWS[dataset, config][1])
    if split not in known:
        raise KeyError(f"no split {split!r} in {dataset!r}: known are {', '.join(known)}")
    return [dict(row) for row in _splits(dataset, config)[split]]


@cache
def _splits(dataset: str, config: str | None) -> dict[str, list[Row]]:
    draw, evaluation, number = _DRAWS[dataset, config]
    drawn = draw_splits(f"{dataset}/{config}", draw, {"train": TRAIN, evaluation: EVALUATION})
    if not number:
        return drawn
    kind = int if dataset.endswith("/paws") else str
    return {
        split: [{number: kind(i), **_but(row, number)} for i, row in enumerate(rows)] for split, rows in drawn.items()
    }


def _but(row: Row, column: str) -> Row:
    return {name: value for name, value in row.items() if name != column}

"""GLUE-shaped demo data: the nine tasks in the column schema of `nyu-mll/glue`, made from the demo language.

Every label follows from the text by a rule of the language. Rows are the same on every machine, training and evaluation
rows are disjoint, and none of them opens a drill of the text the demo backbones were pretrained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from random import Random
from typing import Any

from mtlbench.demo.judgements import judge
from mtlbench.demo.language import Inference, ask, compare, compare_questions, infer, reserved
from mtlbench.demo.lexicon import EVERYDAY, SEASIDE, Genre
from mtlbench.demo.opinions import review
from mtlbench.demo.pronouns import refer

Row = dict[str, Any]
_RELATIONS: tuple[Inference, ...] = ("follows", "open", "clashes")
_SPLITS = ("train", "validation")
_MNLI_SPLITS = ("train", "validation_matched", "validation_mismatched")
_SMALL = {"wnli": (560, 160), "rte": (700, 200)}


def _cola(rng: Random, genre: Genre) -> Row:
    label = int(rng.random() < 0.5)
    return {"sentence": judge(rng, genre)[1 - label], "label": label}


def _sst2(rng: Random, genre: Genre) -> Row:
    label = int(rng.random() < 0.5)
    return {"sentence": review(rng, good=bool(label)), "label": label}


def _mrpc(rng: Random, genre: Genre) -> Row:
    pair = compare(rng, genre, count=rng.choice((0, 0, 1, 2)))
    return {"sentence1": pair.first, "sentence2": pair.second, "label": int(not pair.changed)}


def _qqp(rng: Random, genre: Genre) -> Row:
    label = int(rng.random() < 0.5)
    pair = compare_questions(rng, genre, same=bool(label))
    return {"question1": pair.first, "question2": pair.second, "label": label}


def _stsb(rng: Random, genre: Genre) -> Row:
    pair = compare(rng, genre)
    return {"sentence1": pair.first, "sentence2": pair.second, "label": pair.grade}


def _mnli(rng: Random, genre: Genre) -> Row:
    label = rng.randrange(3)
    pair = infer(rng, genre, _RELATIONS[label])
    return {"premise": pair.premise, "hypothesis": pair.hypothesis, "label": label}


def _qnli(rng: Random, genre: Genre) -> Row:
    label = int(rng.random() < 0.5)
    pair = ask(rng, genre, answered=not label)
    return {"question": pair.question, "sentence": pair.sentence, "label": label}


def _rte(rng: Random, genre: Genre) -> Row:
    relation = rng.choice(("follows", "follows", "open", "clashes"))
    pair = infer(rng, genre, relation)  # type: ignore[arg-type]
    return {"sentence1": pair.premise, "sentence2": pair.hypothesis, "label": int(relation != "follows")}


def _wnli(rng: Random, genre: Genre) -> Row:
    label, pair = int(rng.random() < 0.5), refer(rng)
    return {"sentence1": pair.text, "sentence2": pair.right if label else pair.wrong, "label": label}


_BUILDERS: Mapping[str, Callable[[Random, Genre], Row]] = {
    "cola": _cola, "sst2": _sst2, "mrpc": _mrpc, "qqp": _qqp, "stsb": _stsb, "mnli": _mnli, "qnli": _qnli, "rte": _rte,
    "wnli": _wnli,
}  # fmt: skip
CONFIGS = tuple(_BUILDERS)


def glue_splits(config: str) -> tuple[str, ...]:
    """The splits of one configuration; `mnli` has two for evaluation."""
    return _MNLI_SPLITS if config == "mnli" else _SPLITS


def glue_rows(config: str, split: str) -> list[Row]:
    """The rows of one split of one GLUE configuration, columns in the hub's order, `idx` last.

    The mismatched split of `mnli` is about the sea and its people, of which the training rows know nothing.

    Raises:
        KeyError: the configuration or the split is not one of `CONFIGS` and `glue_splits(config)`.
    """
    if config not in _BUILDERS:
        raise KeyError(f"no GLUE configuration {config!r}: known are {', '.join(CONFIGS)}")
    if split not in glue_splits(config):
        raise KeyError(f"no split {split!r} in {config!r}: known are {', '.join(glue_splits(config))}")
    return [dict(row) for row in _splits(config)[split]]


@cache
def _splits(config: str) -> dict[str, list[Row]]:
    trained, evaluated = _SMALL.get(config, (800, 200))
    sizes = {split: trained if split == "train" else evaluated for split in glue_splits(config)}
    seen: set[str] = set()
    return {split: _fresh(config, split, size, seen) for split, size in sizes.items()}


def _fresh(config: str, split: str, size: int, seen: set[str]) -> list[Row]:
    """`size` rows whose first text is in no row before."""
    rows: list[Row] = []
    for row in _stream(config, split):
        first = next(iter(row.values()))
        if first in seen:
            continue
        seen.add(first)
        rows.append({**row, "idx": len(rows)})
        if len(rows) == size:
            break
    return rows


def _stream(config: str, split: str) -> Iterator[Row]:
    rng = Random(zlib.crc32(f"{config}/{split}".encode()))
    genre = SEASIDE if split == "validation_mismatched" else EVERYDAY
    while True:
        row = _BUILDERS[config](rng, genre)
        if reserved(next(iter(row.values()))):
            yield row

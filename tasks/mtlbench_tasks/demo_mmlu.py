"""MMLU-shaped demo data: the 57 subjects and the auxiliary training rows of ``cais/mmlu``, from the demo language.

A subject is a name only: all ask the same kinds of question, about what was said, opposites and kinds of things.
"""

from __future__ import annotations

from functools import cache
from random import Random

from mtlbench_tasks.demo_commonsense import arc_challenge, arc_easy, openbookqa
from mtlbench_tasks.demo_rows import Row, draw_splits
from mtlbench_tasks.subjects import SUBJECTS

SIZES = {"dev": 5, "test": 10}
AUXILIARY = 600


def _question(rng: Random) -> tuple[str, list[Row]]:
    told, (row,) = rng.choice((arc_easy, arc_challenge, openbookqa))(rng)
    asked = row.get("question") or row["question_stem"]
    choices, label = row["choices"]["text"], row["choices"]["label"]
    return told, [{"question": asked, "subject": "", "choices": choices, "answer": label.index(row["answerKey"])}]


def mmlu_rows(config: str, split: str) -> list[Row]:
    """The rows of one split of one subject, or of `all`, with the hub's columns.

    The splits of a subject are `dev` (5 rows) and `test`; `all` has them for all subjects, and `auxiliary_train`, whose
    rows have no subject.

    Raises:
        KeyError: the configuration or the split is not there.
    """
    if config not in ("all", *SUBJECTS):
        raise KeyError(f"no MMLU subject {config!r}: known are all, {', '.join(SUBJECTS)}")
    if config == "all" and split in SIZES:
        return [row for subject in SUBJECTS for row in mmlu_rows(subject, split)]
    name = split if config == "all" else f"{config}/{split}"
    if name not in _splits():
        raise KeyError(f"no split {split!r} in {config!r}: known are {', '.join(SIZES)}")
    return [{**row, "subject": "" if config == "all" else config} for row in _splits()[name]]


@cache
def _splits() -> dict[str, list[Row]]:
    """All rows at once, so that no question is in two splits of any two subjects."""
    sizes = {f"{subject}/{split}": size for subject in SUBJECTS for split, size in SIZES.items()}
    return draw_splits("mmlu", _question, {**sizes, "auxiliary_train": AUXILIARY})

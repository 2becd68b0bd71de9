"""Drawing generated rows: the same on every machine, and none in two splits."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from mtlbench.demo.language import reserved
from mtlbench.demo.lexicon import HE_NAMES, SHE_NAMES

Row = dict[str, Any]
Draw = Callable[[Random], tuple[str, list[Row]]]
"""A first sentence, and the rows that belong to it."""

_DRAWS = 200
"""Draws for each row wanted before giving up; about one draw in six is free."""


def draw_splits(name: str, draw: Draw, sizes: Mapping[str, int]) -> dict[str, list[Row]]:
    """``sizes[split]`` rows of each split. Every first sentence is new, and none that pretraining drills use.

    Rows of one first sentence stay in one split.

    Raises:
        RuntimeError: `draw` has not that many first sentences.
    """
    seen: set[str] = set()
    splits: dict[str, list[Row]] = {}
    for split, size in sizes.items():
        rng = Random(zlib.crc32(f"{name}/{split}".encode()))
        rows: list[Row] = []
        for _ in range(_DRAWS * size):
            if len(rows) >= size:
                break
            first, made = draw(rng)
            if first not in seen and reserved(first):
                seen.add(first)
                rows += made
        if len(rows) < size:
            raise RuntimeError(f"{name} has too few different rows for {size} in {split!r}")
        splits[split] = rows[:size]
    return splits


def inside(sentence: str) -> str:
    """A sentence as a clause: no final mark, no capital but that of a name or a day."""
    words = sentence.rstrip(".?").split()
    kept = words[0] in HE_NAMES or words[0] in SHE_NAMES
    return " ".join([words[0] if kept else words[0][0].lower() + words[0][1:], *words[1:]])


def shuffled(rng: Random, right: str, wrong: list[str]) -> tuple[list[str], int]:
    """The answers in random order, and the number of the right one."""
    answers = rng.sample([right, *wrong], k=1 + len(wrong))
    return answers, answers.index(right)

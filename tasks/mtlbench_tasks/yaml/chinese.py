"""Targets and metrics of the Chinese tasks that lm-eval's YAML fields alone cannot say.

Sources: CMRC 2018 (Cui et al. 2019, arXiv 1810.07366, section 4.1) for the F1 of answers; Li et al. 2018 (ACML, PMLR
95:518) for opinion targets; Chinese NRE (Li et al. 2019, ACL P19-1430) for relations.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from mtlbench_tasks.relations import FINRE, SANWEN

_PIECES = re.compile(r"[a-z0-9]+|\S")
Pair = tuple[str, str]
"""Gold, predicted."""


def answer(doc: Mapping[str, Any]) -> str:
    """The first of the answers that count as right."""
    return str(doc["answers"]["text"][0])


def process_answer(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """F1 and exact match of the generated answer, the best over the right ones."""
    made, golds = pieces(results[0]), [pieces(text) for text in doc["answers"]["text"]]
    return {"f1": max(overlap(made, gold) for gold in golds), "exact_match": float(made in golds)}


def pieces(text: str) -> list[str]:
    """Chinese characters and Latin words or numbers, lower case, without marks and blanks."""
    kept = "".join(" " if unicodedata.category(char)[0] in "PS" else char for char in text.lower())
    return _PIECES.findall(kept)


def overlap(made: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of the longest run of pieces that both share, as CMRC 2018 scores it."""
    if not made or not gold:
        return float(made == gold)
    shared = SequenceMatcher(None, made, gold, autojunk=False).find_longest_match().size
    return 2 * shared / (len(made) + len(gold))


def process_target(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The opinion target named and the right one."""
    pair = (doc["ot"].strip(), results[0].strip())
    return {"f1": pair, "exact_match": float(pair[0] == pair[1])}


def target_f1(pairs: Sequence[Pair]) -> float:
    """F1 over all rows of targets that are exactly right; a row for which nothing is named counts as missed."""
    return _f1(right=sum(g == p for g, p in pairs), named=sum(bool(p) for _, p in pairs), wanted=len(pairs))


def c3_gold(doc: Mapping[str, Any]) -> int:
    """Number of the right choice.

    Raises:
        ValueError: the answer is none of the choices.
    """
    if doc["answer"] not in doc["choice"]:
        raise ValueError(f"the answer {doc['answer']!r} is none of the choices {list(doc['choice'])}")
    return list(doc["choice"]).index(doc["answer"])


def sanwen_choices(doc: Mapping[str, Any]) -> list[str]:
    """The relations of SanWen."""
    return list(SANWEN.values())


def sanwen_gold(doc: Mapping[str, Any]) -> int:
    """Number of the relation."""
    return list(SANWEN).index(doc["relation"])


def finre_choices(doc: Mapping[str, Any]) -> list[str]:
    """The relations of FinRE."""
    return list(FINRE.values())


def finre_gold(doc: Mapping[str, Any]) -> int:
    """Number of the relation."""
    return list(FINRE).index(doc["relation"])


def process_sanwen(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """The right relation and the most likely one."""
    return _relation(doc["relation"], list(SANWEN), results)


def process_finre(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """The right relation and the most likely one."""
    return _relation(doc["relation"], list(FINRE), results)


def _relation(gold: str, known: list[str], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    predicted = known[int(np.argmax([logprob for logprob, _ in results]))]
    return {"acc": float(predicted == gold), "f1": (gold, predicted)}


def relation_f1(pairs: Sequence[Pair]) -> float:
    """Micro F1 over all rows; ``unknown`` is no relation, so that neither finding nor missing it counts."""
    return _f1(
        right=sum(g == p != "unknown" for g, p in pairs),
        named=sum(p != "unknown" for _, p in pairs),
        wanted=sum(g != "unknown" for g, _ in pairs),
    )


def _f1(*, right: int, named: int, wanted: int) -> float:
    return 2 * right / (named + wanted) if named + wanted else 0.0

"""Prompt, answers and metrics of ``record.yaml``.

Source: ReCoRD (Zhang et al. 2018, arXiv 1810.12885, section 5.1): exact match and token F1 of the chosen entity, the
best over the right ones, after the normalisation of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_HIGHLIGHT = "\n@highlight\n"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_MARKS = str.maketrans("", "", string.punctuation)


def process_docs(docs: Any) -> Any:
    """Entities and answers sorted, each once."""
    return docs.map(lambda doc: {column: sorted(set(doc[column])) for column in ("entities", "answers")})


def text(doc: Mapping[str, Any]) -> str:
    """The passage with its highlights as a list; the choice continues the list."""
    body, *highlights = doc["passage"].strip().split(_HIGHLIGHT)
    return f"{body}\n\n" + "".join(f"  - {line}.\n" for line in highlights)


def choices(doc: Mapping[str, Any]) -> list[str]:
    """The query with each entity in its gap."""
    return [f"  - {doc['query']}".replace("@placeholder", entity) for entity in doc["entities"]]


def golds(doc: Mapping[str, Any]) -> list[int]:
    """Numbers of the right entities.

    Raises:
        ValueError: an answer is no entity, or the query has no gap.
    """
    if "@placeholder" not in doc["query"]:
        raise ValueError(f"the query {doc['query']!r} has no @placeholder")
    missing = [answer for answer in doc["answers"] if answer not in doc["entities"]]
    if missing:
        raise ValueError(f"the answer {missing[0]!r} is none of the entities {doc['entities']}")
    return [doc["entities"].index(answer) for answer in doc["answers"]]


def process_results(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """F1 and exact match of the most likely entity."""
    chosen = _words(doc["entities"][int(np.argmax([logprob for logprob, _ in results]))])
    right = [_words(answer) for answer in doc["answers"]]
    return {"f1": max(_f1(chosen, answer) for answer in right), "em": float(chosen in right)}


def _words(entity: str) -> list[str]:
    return _ARTICLES.sub(" ", entity.lower().translate(_NO_MARKS)).split()


def _f1(chosen: list[str], right: list[str]) -> float:
    if not chosen or not right:
        return float(chosen == right)
    shared = (Counter(chosen) & Counter(right)).total()
    return 2 * shared / (len(chosen) + len(right))

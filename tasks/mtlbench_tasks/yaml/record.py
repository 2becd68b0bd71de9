"""Prompt, answers and metrics of ``record.yaml``.

Source: ReCoRD (Zhang et al. 2018, arXiv 1810.12885, section 5.1): exact match and token F1 of the chosen entity, the
best over the right ones, after the normalisation of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtlbench_tasks.squad import f1, words

_HIGHLIGHT = "\n@highlight\n"


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
    chosen = words(doc["entities"][int(np.argmax([logprob for logprob, _ in results]))])
    right = [words(answer) for answer in doc["answers"]]
    return {"f1": max(f1(chosen, answer) for answer in right), "em": float(chosen in right)}

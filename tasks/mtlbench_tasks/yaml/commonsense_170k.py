"""Target and metric of ``commonsense_170k.yaml``.

Source: LLM-Adapters (Hu et al. 2023, arXiv 2304.01933), AGI-Edgerunners/LLM-Adapters@e0efdc0:commomsense_evaluate.py:
the first answer word that the generated text holds is what the model answered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_WORDS = {"solution": 2, "option": 2, "ending": 4, "answer": 5}
"""Stem of the answer words to how many of them there are."""


def target(doc: Mapping[str, Any]) -> str:
    """What the model learns to say.

    Raises:
        ValueError: the output does not give the answer.
    """
    if answered(doc["output"], like=doc["answer"]) != doc["answer"]:
        raise ValueError(f"the output {doc['output']!r} does not give the answer {doc['answer']!r}")
    return str(doc["output"])


def answered(text: str, *, like: str) -> str:
    """The first word in ``text`` that may be an answer where ``like`` may be one; empty where there is none."""
    stem = like.rstrip("0123456789")
    words = [f"{stem}{n + 1}" for n in range(_WORDS[stem])] if stem in _WORDS else ["true", "false"]
    found = re.search("|".join(words), text)
    return found.group() if found else ""


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the answer in the generated text is the right one."""
    return {"exact_match": float(answered(results[0], like=doc["answer"]) == doc["answer"])}

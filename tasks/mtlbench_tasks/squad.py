"""How SQuAD compares an answer with the right one (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_MARKS = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """The words that count: lower case, without marks and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_MARKS)).split()


def f1(made: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the words both share, each as often as it is there; nothing equals nothing only."""
    if not made or not right:
        return float(made == right)
    shared = (Counter(made) & Counter(right)).total()
    return 2 * shared / (len(made) + len(right))

"""Which log-likelihood requests can share one row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mtlbench.engine.encode import Tokens


@dataclass(frozen=True, slots=True)
class Wish:
    """One request: the log-likelihood of ``answer`` behind ``tokens``."""

    number: int
    """Position of the request in the caller's list."""
    group: tuple[int, Tokens]
    """Task id and encoder input (empty for a causal backbone): only wishes of one group may share."""
    tokens: Tokens
    """What the decoder reads; its last ``len(answer)`` positions predict ``answer``."""
    answer: Tokens

    @property
    def first(self) -> int:
        """Position that predicts the first token of the answer."""
        return len(self.tokens) - len(self.answer)


@dataclass(slots=True)
class SharedRow:
    """One decoder row and the wishes it grants."""

    group: tuple[int, Tokens]
    tokens: Tokens
    wishes: list[Wish] = field(default_factory=list)

    def by_context(self) -> list[SharedRow]:
        """The same wishes with a row for each context: a context may be read otherwise than as the start of another."""
        found: dict[int, SharedRow] = {}
        for wish in sorted(self.wishes, key=lambda w: len(w.tokens), reverse=True):
            found.setdefault(wish.first, SharedRow(self.group, wish.tokens)).wishes.append(wish)
        return list(found.values())


def share_rows(wishes: Sequence[Wish]) -> list[SharedRow]:
    """As few rows as possible, sorted: a wish whose tokens begin another's takes the other's row.

    A decoder looks only backwards, so the shared positions give the same logits.
    """
    rows: list[SharedRow] = []
    # In dictionary order whatever extends a sequence follows it directly; walked backwards, the longest comes first.
    for wish in sorted(wishes, key=lambda w: (w.group, w.tokens), reverse=True):
        last = rows[-1] if rows else None
        if last is None or last.group != wish.group or last.tokens[: len(wish.tokens)] != wish.tokens:
            last = SharedRow(wish.group, wish.tokens)
            rows.append(last)
        last.wishes.append(wish)
    return rows[::-1]

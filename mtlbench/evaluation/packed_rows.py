"""Sequences that begin alike, in one row: a decoder reads what they share once.

The tokens of a row are those of a tree, written depth first. A token sees the tokens on its path from the root, and
stands at its depth, so every path reads as if it stood alone. What many rows share, such as worked examples before
every prompt, is better read once ahead of them: their trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from mtlbench.tokens.encode import Tokens

PAIRS_PER_TOKEN = 1000
"""Pairs of tokens in attention that cost as much as one token in everything else."""
SHARED_PREFIX_COST = 64
"""What reading a trunk ahead costs besides its tokens, in tokens: small batches, and copies of its keys and values."""


@dataclass(slots=True)
class PackedRow:
    """One decoder row."""

    group: tuple[int, Tokens]
    """Task id and encoder input."""
    trunk: Tokens
    """What was read before; its keys and values come from a cache."""
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """For each token where its subtree ends: it is seen by itself and the tokens before there."""
    picks: list[tuple[ScoreRequest, list[int]]] = field(default_factory=list)
    """For each wish the tokens whose logits predict its answer."""

    @property
    def context(self) -> int:
        """Tokens before the first answer."""
        return min((wish.first for wish, _ in self.picks), default=len(self.tokens)) + 1

    @property
    def branches(self) -> bool:
        """Whether it holds more than one sequence."""
        return any(end < len(self.tokens) for end in self.ends)


def pack_rows(rows: Sequence[SharedRow], *, trunks: bool = True, slots: int = 0) -> list[PackedRow]:
    """The packs that cost least for ``rows``, as :func:`~mtlbench.evaluation.packed_rows.share_rows` gives them.

    Args:
        rows: Sorted by group and tokens; none begins another of its group.
        trunks: Whether a beginning may be read ahead.
        slots: Those of a soft prompt, which the decoder reads before every row that is not behind a trunk.
    """
    packs: list[PackedRow] = []
    start = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at].group != rows[start].group:
            packs += _Plan(rows[start:at], trunks=trunks, slots=slots).packs()
            start = at
    return packs


class _Plan:
    """The cheapest way to read the sequences of one group."""

    def __init__(self, rows: Sequence[SharedRow], *, trunks: bool, slots: int) -> None:
        self._rows, self._trunks, self._slots = rows, trunks, slots
        # what each row shares with the next one
        self._shared = [common_length(a.tokens, b.tokens) for a, b in pairwise(rows)]
        self._lengths = [0, *accumulate(len(row.tokens) for row in rows)]
        self._savings = [0, *accumulate(self._shared)]
        self._firsts = [min(wish.first for wish in row.wishes) for row in rows]

    def packs(self) -> list[PackedRow]:
        _, chosen = self._best(0, len(self._rows), 0)
        return [pack_of(self._rows[low:high], trunk=self._rows[low].tokens[:trunk]) for low, high, trunk in chosen]

    def _best(self, low: int, high: int, trunk: int) -> tuple[float, list[tuple[int, int, int]]]:
        """Cost and ``(first, last + 1, trunk length)`` of the packs of rows ``low`` to ``high`` behind a trunk."""
        size = self._lengths[high] - self._lengths[low] - self._savings[high - 1] + self._savings[low] - trunk
        size += 0 if trunk else self._slots
        best = size + size * size / PAIRS_PER_TOKEN, [(low, high, trunk)]
        if high - low == 1:
            return best
        shared = min(self._shared[low : high - 1])
        cuts = [low, *(at + 1 for at in range(low, high - 1) if self._shared[at] == shared), high]
        children = list(pairwise(cuts))
        best = min(best, self._each(children, trunk, 0), key=_cost)
        if trunk or not self._trunks:
            return best
        ahead = min(shared, *self._firsts[low:high])
        cost = ahead + self._slots + SHARED_PREFIX_COST
        if ahead > 0 and cost < best[0]:
            best = min(best, self._each(children, ahead, cost), key=_cost)
        return best

    def _each(
        self, children: Sequence[tuple[int, int]], trunk: int, cost: float
    ) -> tuple[float, list[tuple[int, int, int]]]:
        chosen: list[tuple[int, int, int]] = []
        for low, high in children:
            more, packs = self._best(low, high, trunk)
            cost += more
            chosen += packs
        return cost, chosen


def _cost(option: tuple[float, list[tuple[int, int, int]]]) -> float:
    return option[0]


def pack_of(rows: Sequence[SharedRow], *, trunk: Tokens = ()) -> PackedRow:
    """One pack of sorted sequences of one group that all begin with ``trunk``."""
    base = len(trunk)
    pack = PackedRow(rows[0].group, trunk)
    path: list[int] = []  # the open tokens, by depth
    before: Tokens = ()
    for row in rows:
        keep = max(0, common_length(before, row.tokens) - base)
        for at in path[keep:]:
            pack.ends[at] = len(pack.tokens)
        new = row.tokens[base + keep :]
        path[keep:] = range(len(pack.tokens), len(pack.tokens) + len(new))
        pack.tokens += new
        pack.positions += range(base + keep, len(row.tokens))
        pack.ends += [0] * len(new)
        for wish in row.wishes:
            first = wish.first - base
            pack.picks.append((wish, path[first : first + len(wish.answer)]))
        before = row.tokens
    for at in path:
        pack.ends[at] = len(pack.tokens)
    return pack


def common_length(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class ScoreRequest:
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
    wishes: list[ScoreRequest] = field(default_factory=list)

    def by_context(self) -> list[SharedRow]:
        """The same wishes with a row for each context: a context may be read otherwise than as the start of another."""
        found: dict[int, SharedRow] = {}
        for wish in sorted(self.wishes, key=lambda w: len(w.tokens), reverse=True):
            found.setdefault(wish.first, SharedRow(self.group, wish.tokens)).wishes.append(wish)
        return list(found.values())


def share_rows(wishes: Sequence[ScoreRequest]) -> list[SharedRow]:
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

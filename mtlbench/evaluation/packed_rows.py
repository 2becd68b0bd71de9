"""Packed rows: sequences with a common prefix share one decoder row, so that the prefix is computed once.

The tokens of a row form a tree, written depth first. A token attends to the tokens on its path from the root, and its
position is its depth, so every path is computed as if it were alone. A prefix of many rows, such as few-shot examples
before every prompt, is computed once in advance instead: their shared prefix, in a key-value cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from mtlbench.tokens.encode import Tokens

PAIRS_PER_TOKEN = 1000
"""Pairs of tokens in attention that cost as much as one token in all other layers."""
SHARED_PREFIX_COST = 64
"""Overhead of a shared prefix in tokens: smaller batches, and copies of its keys and values."""


@dataclass(slots=True)
class PackedRow:
    """One decoder row with one or more sequences."""

    group: tuple[int, Tokens]
    """Task id and encoder input."""
    prefix: Tokens
    """The shared prefix, whose keys and values come from a cache."""
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """For each token the end of its subtree: the tokens from itself to there attend to it."""
    readouts: list[tuple[ScoreRequest, list[int]]] = field(default_factory=list)
    """For each request the read-out positions: those whose logits predict its answer."""

    @property
    def context(self) -> int:
        """Number of tokens before the first answer."""
        return min((request.first for request, _ in self.readouts), default=len(self.tokens)) + 1

    @property
    def branches(self) -> bool:
        """Whether it holds more than one sequence."""
        return any(end < len(self.tokens) for end in self.ends)


def pack_rows(rows: Sequence[SharedRow], *, prefixes: bool = True, virtual_tokens: int = 0) -> list[PackedRow]:
    """The cheapest packing of ``rows``, which come from :func:`share_rows`.

    Args:
        rows: Sorted by group and tokens; none is a prefix of another one in its group.
        prefixes: Whether shared prefixes may be used.
        virtual_tokens: Length of a soft prompt, which precedes every row without a shared prefix.
    """
    packed_rows: list[PackedRow] = []
    start = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at].group != rows[start].group:
            packed_rows += _Packing(rows[start:at], prefixes=prefixes, virtual_tokens=virtual_tokens).packed_rows()
            start = at
    return packed_rows


class _Packing:
    """Finds the cheapest packing of the sequences of one group."""

    def __init__(self, rows: Sequence[SharedRow], *, prefixes: bool, virtual_tokens: int) -> None:
        self._rows, self._prefixes, self._virtual_tokens = rows, prefixes, virtual_tokens
        # common prefix length of each row with the next one
        self._shared = [common_length(a.tokens, b.tokens) for a, b in pairwise(rows)]
        self._lengths = [0, *accumulate(len(row.tokens) for row in rows)]
        self._savings = [0, *accumulate(self._shared)]
        self._firsts = [min(request.first for request in row.requests) for row in rows]

    def packed_rows(self) -> list[PackedRow]:
        _, chosen = self._best(0, len(self._rows), 0)
        return [
            packed_row(self._rows[low:high], prefix=self._rows[low].tokens[:prefix]) for low, high, prefix in chosen
        ]

    def _best(self, low: int, high: int, prefix: int) -> tuple[float, list[tuple[int, int, int]]]:
        """Cost and ``(first, last + 1, prefix length)`` of packed rows for ``low`` to ``high`` behind a prefix."""
        size = self._lengths[high] - self._lengths[low] - self._savings[high - 1] + self._savings[low] - prefix
        size += 0 if prefix else self._virtual_tokens
        best = size + size * size / PAIRS_PER_TOKEN, [(low, high, prefix)]
        if high - low == 1:
            return best
        shared = min(self._shared[low : high - 1])
        cuts = [low, *(at + 1 for at in range(low, high - 1) if self._shared[at] == shared), high]
        children = list(pairwise(cuts))
        best = min(best, self._each(children, prefix, 0), key=_cost)
        if prefix or not self._prefixes:
            return best
        length = min(shared, *self._firsts[low:high])
        cost = length + self._virtual_tokens + SHARED_PREFIX_COST
        if length > 0 and cost < best[0]:
            best = min(best, self._each(children, length, cost), key=_cost)
        return best

    def _each(
        self, children: Sequence[tuple[int, int]], prefix: int, cost: float
    ) -> tuple[float, list[tuple[int, int, int]]]:
        chosen: list[tuple[int, int, int]] = []
        for low, high in children:
            more, packed_rows = self._best(low, high, prefix)
            cost += more
            chosen += packed_rows
        return cost, chosen


def _cost(option: tuple[float, list[tuple[int, int, int]]]) -> float:
    return option[0]


def packed_row(rows: Sequence[SharedRow], *, prefix: Tokens = ()) -> PackedRow:
    """Pack sorted sequences of one group, which all begin with ``prefix``, into one row."""
    base = len(prefix)
    packed = PackedRow(rows[0].group, prefix)
    path: list[int] = []  # indices of the tokens of the current sequence, by depth
    before: Tokens = ()
    for row in rows:
        keep = max(0, common_length(before, row.tokens) - base)
        for at in path[keep:]:
            packed.ends[at] = len(packed.tokens)
        new = row.tokens[base + keep :]
        path[keep:] = range(len(packed.tokens), len(packed.tokens) + len(new))
        packed.tokens += new
        packed.positions += range(base + keep, len(row.tokens))
        packed.ends += [0] * len(new)
        for request in row.requests:
            first = request.first - base
            packed.readouts.append((request, path[first : first + len(request.answer)]))
        before = row.tokens
    for at in path:
        packed.ends[at] = len(packed.tokens)
    return packed


def common_length(one: Tokens, other: Tokens) -> int:
    """Length of the common prefix of two sequences."""
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
    """Index of the request in the caller's list."""
    group: tuple[int, Tokens]
    """Task id and encoder input (empty for a causal backbone): only requests of one group may share a row."""
    tokens: Tokens
    """Input of the decoder; its last ``len(answer)`` positions predict ``answer``."""
    answer: Tokens

    @property
    def first(self) -> int:
        """Position that predicts the first token of the answer."""
        return len(self.tokens) - len(self.answer)


@dataclass(slots=True)
class SharedRow:
    """One decoder sequence and the requests that are scored on it."""

    group: tuple[int, Tokens]
    tokens: Tokens
    requests: list[ScoreRequest] = field(default_factory=list)

    def by_context(self) -> list[SharedRow]:
        """The same requests with one row per context, for models whose output depends on where the context ends."""
        rows: dict[int, SharedRow] = {}
        for request in sorted(self.requests, key=lambda r: len(r.tokens), reverse=True):
            rows.setdefault(request.first, SharedRow(self.group, request.tokens)).requests.append(request)
        return list(rows.values())


def share_rows(requests: Sequence[ScoreRequest]) -> list[SharedRow]:
    """Merge requests into as few rows as possible, sorted: one whose tokens are a prefix of another's shares its row.

    As a decoder is causal, the common positions have the same logits.
    """
    rows: list[SharedRow] = []
    # In lexicographic order the extensions of a sequence follow it directly; in reverse, the longest comes first.
    for request in sorted(requests, key=lambda r: (r.group, r.tokens), reverse=True):
        last = rows[-1] if rows else None
        if last is None or last.group != request.group or last.tokens[: len(request.tokens)] != request.tokens:
            last = SharedRow(request.group, request.tokens)
            rows.append(last)
        last.requests.append(request)
    return rows[::-1]

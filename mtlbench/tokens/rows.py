"""Tokenised rows in arrays: four bytes a token, mapped from the cache. Tuples are built when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from mtlbench.tokens.encode import TokenRow, Tokens
from mtlbench.tokens.entries import Entry
from mtlbench.tokens.facts import RowFacts

CachedRow = tuple[Tokens, Tokens, RowFacts]
"""Context and target of an example, and what else is known of it."""


class TokenTable:
    """Pairs of token sequences: ``tokens`` holds one after another, ``firsts`` and ``seconds`` their lengths."""

    def __init__(self, tokens: np.ndarray, firsts: np.ndarray, seconds: np.ndarray) -> None:
        self._tokens = tokens
        self._bounds = np.zeros(2 * len(firsts) + 1, dtype=np.int64)
        np.cumsum(np.stack([firsts, seconds], axis=1).reshape(-1), out=self._bounds[1:])
        if self._bounds[-1] != len(tokens):
            raise ValueError(f"{len(tokens)} tokens are not the {self._bounds[-1]} of the lengths")

    def __len__(self) -> int:
        return len(self._bounds) // 2

    def first(self, number: int) -> Tokens:
        """The first sequence of a pair."""
        return tuple(self._tokens[self._bounds[2 * number] : self._bounds[2 * number + 1]].tolist())

    def second(self, number: int) -> Tokens:
        """The second sequence of a pair."""
        return tuple(self._tokens[self._bounds[2 * number + 1] : self._bounds[2 * number + 2]].tolist())

    def length(self, number: int) -> int:
        """Number of tokens of both."""
        return int(self._bounds[2 * number + 2] - self._bounds[2 * number])


class CachedRows(Sequence[CachedRow]):
    """The rows of an entry; equal to a list of the same rows."""

    def __init__(self, entry: Entry) -> None:
        self.tokens = TokenTable(entry["tokens"], entry["contexts"], entry["targets"])
        self.cut = entry["cut"]
        self._into, self._question = entry["into_question"], entry["question"]

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, number: int) -> CachedRow: ...

    @overload
    def __getitem__(self, number: slice) -> list[CachedRow]: ...

    def __getitem__(self, number: int | slice) -> CachedRow | list[CachedRow]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        at = range(len(self))[number]
        facts = RowFacts(int(self.cut[at]), bool(self._into[at]), int(self._question[at]))
        return self.tokens.first(at), self.tokens.second(at), facts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def facts(self) -> list[RowFacts]:
        """What else is known of each row."""
        return facts_in(self.cut, self._into, self._question)

    def rows(self, *, task: int, docs: Iterable[int]) -> list[TokenRow]:
        """The rows as training takes them, with the task id and the numbers of their examples."""
        return [StoredRow(self, at, task=task, doc=doc) for at, doc in zip(range(len(self)), docs, strict=True)]


class StoredRow(TokenRow):
    """A row whose tokens stay in the arrays of its :class:`CachedRows`: equal to the plain row."""

    __slots__ = ("_number", "_rows")
    _rows: CachedRows
    _number: int

    def __init__(self, rows: CachedRows, number: int, *, task: int, doc: int) -> None:
        for name, value in (("task", task), ("doc", doc), ("_rows", rows), ("_number", number)):
            object.__setattr__(self, name, value)

    @property
    def context(self) -> Tokens:
        return self._rows.tokens.first(self._number)

    @property
    def target(self) -> Tokens:
        return self._rows.tokens.second(self._number)

    @property
    def cut(self) -> int:
        return int(self._rows.cut[self._number])

    @property
    def length(self) -> int:
        return self._rows.tokens.length(self._number)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenRow):
            return NotImplemented
        mine, others = ((row.task, row.context, row.target, row.cut) for row in (self, other))
        return mine == others

    def __hash__(self) -> int:
        return hash((self.task, self.context, self.target, self.cut))

    def __repr__(self) -> str:
        return repr(self._plain())

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenRow, (self.task, self.context, self.target, self.cut, self.doc)

    def _plain(self) -> TokenRow:
        return TokenRow(self.task, self.context, self.target, self.cut, self.doc)


def entry_of(rows: Iterable[CachedRow]) -> Entry:
    """The arrays of rows that come one after another: only the arrays are held."""
    tokens, question = array("i"), array("q")
    contexts, targets, cut, into = array("q"), array("q"), array("q"), array("b")
    for context, target, facts in rows:
        tokens.extend(context)
        tokens.extend(target)
        contexts.append(len(context))
        targets.append(len(target))
        cut.append(facts.cut)
        into.append(facts.into_question)
        question.append(facts.question)
    return {
        "tokens": np.asarray(tokens, dtype="<i4"),
        "contexts": np.asarray(contexts, dtype="<i8"),
        "targets": np.asarray(targets, dtype="<i8"),
        "cut": np.asarray(cut, dtype="<i8"),
        "into_question": np.asarray(into, dtype="i1"),
        "question": np.asarray(question, dtype="<i8"),
    }


def facts_in(cut: np.ndarray, into_question: np.ndarray, question: np.ndarray) -> list[RowFacts]:
    """The facts of rows from their arrays."""
    columns = (cut.tolist(), into_question.tolist(), question.tolist())
    return [RowFacts(lost, bool(into), asked) for lost, into, asked in zip(*columns, strict=True)]


def parts_of(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """``numbers`` in parts of at most ``size``."""
    return (numbers[at : at + size] for at in range(0, len(numbers), size))

"""Tokens of evaluation requests: made with the facts of evaluation rows, cached, and used by every scoring."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mtlbench.tokens.encode import Tokens, encode_pairs, encode_prompts
from mtlbench.tokens.entries import Entry
from mtlbench.tokens.rows import TokenTable

_BITS = 40
"""Bits of the number of a request in its entry, in the index of all."""


class RequestMaker:
    """Collects requests for an entry, each distinct one once."""

    def __init__(self) -> None:
        self._tokens, self._contexts, self._answers = array("i"), array("q"), array("q")
        self._digests: dict[bytes, None] = {}

    def add(self, texts: Sequence[str], context: Tokens, answer: Tokens) -> None:
        """A request, by its texts: context and answer, or a prompt alone."""
        name = _digest(texts)
        if name not in self._digests:
            self._digests[name] = None
            self._tokens.extend(context)
            self._tokens.extend(answer)
            self._contexts.append(len(context))
            self._answers.append(len(answer))

    def entry(self) -> Entry:
        """The arrays."""
        return {
            "request_tokens": np.asarray(self._tokens, dtype="<i4"),
            "request_contexts": np.asarray(self._contexts, dtype="<i8"),
            "request_answers": np.asarray(self._answers, dtype="<i8"),
            "request_digests": np.frombuffer(b"".join(self._digests), dtype="u1").reshape(-1, 16),
        }


class RequestTokens:
    """Tokens of the requests of several tasks, for one tokenizer and architecture.

    What a text becomes does not depend on the task, nor on what is tokenised with it. Requests that are not here are
    tokenised; none is kept.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._tables: list[TokenTable] = []
        self._places: dict[bytes, int] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """The requests of an entry of :class:`RequestMaker`."""
        base = len(self._tables) << _BITS
        names = entry["request_digests"].tobytes()
        self._places.update({names[16 * at : 16 * at + 16]: base + at for at in range(len(names) // 16)})
        self._tables.append(
            TokenTable(entry["request_tokens"], entry["request_contexts"], entry["request_answers"]),
        )

    def pairs(
        self, tokenizer: Any, pairs: Sequence[tuple[str, str]], *, architecture: str
    ) -> list[tuple[Tokens, Tokens]]:
        """As :func:`~mtlbench.tokens.encode.encode_pairs`."""
        found = [self._find(pair) for pair in pairs]
        rest = [pair for pair, known in zip(pairs, found, strict=True) if known is None]
        made = iter(encode_pairs(tokenizer, rest, architecture=architecture) if rest else ())
        return [next(made) if known is None else known for known in found]

    def prompts(self, tokenizer: Any, prompts: Sequence[str], *, architecture: str) -> dict[str, Tokens]:
        """As :func:`~mtlbench.tokens.encode.encode_prompts`."""
        found = {prompt: self._find((prompt,)) for prompt in prompts}
        rest = [prompt for prompt, known in found.items() if known is None]
        made = encode_prompts(tokenizer, rest, architecture=architecture) if rest else {}
        return {prompt: made[prompt] if known is None else known[0] for prompt, known in found.items()}

    def _find(self, texts: Sequence[str]) -> tuple[Tokens, Tokens] | None:
        place = self._places.get(_digest(texts)) if self._places else None
        if place is None:
            return None
        table, at = self._tables[place >> _BITS], place & (1 << _BITS) - 1
        return table.first(at), table.second(at)


def _digest(texts: Sequence[str]) -> bytes:
    total = hashlib.blake2b(digest_size=16)
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        total.update(len(content).to_bytes(8, "little"))
        total.update(content)
    return total.digest()

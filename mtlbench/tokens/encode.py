"""Encoding of text pairs as token ids, as lm-eval does.

Source: lm_eval 0.4.13, ``TemplateLM._encode_pair`` and ``HFLM.tok_encode``; the tests compare token by token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from mtlbench.errors import DataError

if TYPE_CHECKING:
    from mtlbench.data.examples import Pair

Tokens = tuple[int, ...]


def encode_rows(
    tokenizer: Any,
    pairs: Sequence[Pair],
    *,
    task: int,
    architecture: str,
    max_length: int,
    append_eos: bool,
) -> list[TokenRow]:
    """Encode training examples. ``append_eos`` ends each answer with the end-of-sequence token, for generation tasks.

    Raises:
        DataError: an answer is empty, or too long for ``max_length``.
    """
    end: Tokens = ()
    if append_eos:
        if tokenizer.eos_token_id is None:
            raise DataError("The tokenizer has no end-of-sequence token, which tasks scored by generation need.")
        end = (tokenizer.eos_token_id,)
    encoded = encode_pairs(tokenizer, [(p.context, p.target) for p in pairs], architecture=architecture)
    rows = []
    for pair, (context, target) in zip(pairs, encoded, strict=True):
        try:
            context, target = fit(context, target + end, architecture=architecture, max_length=max_length)
        except DataError as error:
            raise DataError(f"{error} It is {shorten(pair.target, 60)!r}, of {shorten(pair.context, 60)!r}.") from error
        rows.append(TokenRow(task=task, context=context, target=target))
    return rows


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]], *, architecture: str) -> list[tuple[Tokens, Tokens]]:
    """``(context, continuation)`` texts as token ids; each distinct text is tokenised once, all in one call.

    Trailing whitespace of a context is moved to the continuation. For a causal backbone a pair is encoded as one text
    and split; for an encoder-decoder both texts are encoded separately, the continuation without special tokens. An
    empty context becomes the start token.
    """
    stripped_pairs = [_move_blanks(context, continuation) for context, continuation in pairs]
    with_context = [pair for pair in stripped_pairs if pair[0]]
    bare = encode_texts(tokenizer, _bare_texts(stripped_pairs, architecture), special=False)
    if architecture == "causal":
        whole = encode_texts(tokenizer, (text for c, t in with_context for text in (c, c + t)), special=True)
    else:
        whole = encode_texts(tokenizer, (context for context, _ in with_context), special=True)
    encoded: list[tuple[Tokens, Tokens]] = []
    for context, continuation in stripped_pairs:
        if not context:
            encoded.append(_after_start(start_token(tokenizer), bare[continuation]))
        elif architecture == "causal":
            encoded.append((whole[context], whole[context + continuation][len(whole[context]) :]))
        else:
            encoded.append((whole[context], bare[continuation]))
    return encoded


def encode_texts(tokenizer: Any, texts: Iterable[str], *, special: bool) -> dict[str, Tokens]:
    """Distinct texts to their tokens, with special tokens if ``special``.

    A text that already begins with the text of the start token gets no special tokens, as in ``HFLM.tok_encode``.
    """
    unique = list(dict.fromkeys(texts))
    start = tokenizer.decode([start_token(tokenizer)]) if special else ""
    plain = [text for text in unique if not special or text.startswith(start)]
    marked = [text for text in unique if special and not text.startswith(start)]
    encoded: dict[str, Tokens] = {}
    for group, flag in ((plain, False), (marked, True)):
        if group:
            ids = tokenizer(group, add_special_tokens=flag, return_attention_mask=False, verbose=False)["input_ids"]
            encoded.update(zip(group, map(tuple, ids), strict=True))
    return encoded


def start_token(tokenizer: Any) -> int:
    """The token for an empty context: beginning of sequence, else end of sequence."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise DataError("The tokenizer has neither a beginning- nor an end-of-sequence token; set one of them.")
    return int(start)


def fit(context: Tokens, target: Tokens, *, architecture: str, max_length: int) -> tuple[Tokens, Tokens]:
    """Truncate the context on the left so that the example fits; the answer is never truncated.

    A causal example has at most ``max_length`` tokens, answer included, at least one of them context; an
    encoder-decoder example has at most ``max_length`` tokens on each side.

    Raises:
        DataError: the answer is empty, or alone too long.
    """
    if not target:
        raise DataError(
            "An answer has no tokens: its text is empty, or the tokenizer merges it with the end of the prompt."
        )
    room = max_length - len(target) if architecture == "causal" else max_length
    if room < 1 or len(target) > max_length:
        raise DataError(
            f"An answer of {len(target)} tokens does not fit --max-length {max_length}. Raise --max-length."
        )
    return context[-room:], target


def _move_blanks(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _bare_texts(pairs: Sequence[tuple[str, str]], architecture: str) -> list[str]:
    return [continuation for context, continuation in pairs if architecture != "causal" or not context]


def _after_start(start: int, continuation: Tokens) -> tuple[Tokens, Tokens]:
    # lm-eval does not repeat a start token that the text begins with.
    if continuation[:1] == (start,):
        return continuation[:1], continuation[1:]
    return (start,), continuation


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One tokenised example: prompt and answer."""

    task: int
    """Task id."""
    context: tuple[int, ...]
    """Prompt tokens; for an encoder-decoder the input of the encoder."""
    target: tuple[int, ...]
    """Answer tokens, the only ones that contribute to the loss."""

    @property
    def length(self) -> int:
        """Number of tokens of prompt and answer."""
        return len(self.context) + len(self.target)


def by_task(rows: Sequence[TokenRow], tasks: int) -> list[list[int]]:
    """Indices of the rows of each task, for ``tasks`` tasks."""
    indices: list[list[int]] = [[] for _ in range(tasks)]
    for index, row in enumerate(rows):
        indices[row.task].append(index)
    return indices

"""Text pairs to token ids, as lm-eval encodes what it scores.

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
    """Training rows. ``append_eos`` ends each answer with the end-of-sequence token: for tasks scored by generation.

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

    Blanks at the end of a context are moved to the continuation. A causal backbone's pair is encoded as one text and
    split; an encoder-decoder's parts are encoded separately, the continuation without special tokens. An empty context
    becomes the token that starts a text.
    """
    moved = [_move_blanks(context, continuation) for context, continuation in pairs]
    with_context = [pair for pair in moved if pair[0]]
    bare = encode_texts(tokenizer, _bare_texts(moved, architecture), special=False)
    if architecture == "causal":
        whole = encode_texts(tokenizer, (text for c, t in with_context for text in (c, c + t)), special=True)
    else:
        whole = encode_texts(tokenizer, (context for context, _ in with_context), special=True)
    encoded: list[tuple[Tokens, Tokens]] = []
    for context, continuation in moved:
        if not context:
            encoded.append(_after_start(start_token(tokenizer), bare[continuation]))
        elif architecture == "causal":
            encoded.append((whole[context], whole[context + continuation][len(whole[context]) :]))
        else:
            encoded.append((whole[context], bare[continuation]))
    return encoded


def encode_texts(tokenizer: Any, texts: Iterable[str], *, special: bool) -> dict[str, Tokens]:
    """Each distinct text to its tokens, with the tokenizer's special tokens where ``special``.

    A text that already begins with the start token's text gets none added, as in ``HFLM.tok_encode``.
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
    """The token that stands for an empty context: beginning of sequence, or end where there is none."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise DataError("The tokenizer has neither a beginning- nor an end-of-sequence token; set one of them.")
    return int(start)


def fit(context: Tokens, target: Tokens, *, architecture: str, max_length: int) -> tuple[Tokens, Tokens]:
    """Cut the context on its left so that the row fits; the answer is never cut.

    A causal row has at most ``max_length`` tokens, answer included, one of them context; an encoder-decoder row has at
    most ``max_length`` tokens on each side.

    Raises:
        DataError: the answer is empty, or alone too long.
    """
    if not target:
        raise DataError(
            "An answer has no tokens: its text is empty, or the tokenizer joins it with the end of the prompt."
        )
    room = max_length - len(target) if architecture == "causal" else max_length
    if room < 1 or len(target) > max_length:
        raise DataError(
            f"An answer of {len(target)} tokens does not fit --max-length {max_length}. Raise --max-length."
        )
    return context[-room:], target


def _move_blanks(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _bare_texts(pairs: Sequence[tuple[str, str]], architecture: str) -> list[str]:
    return [continuation for context, continuation in pairs if architecture != "causal" or not context]


def _after_start(start: int, continuation: Tokens) -> tuple[Tokens, Tokens]:
    # lm-eval does not repeat a start token that the text brings along.
    if continuation[:1] == (start,):
        return continuation[:1], continuation[1:]
    return (start,), continuation


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row: what the backbone reads and what it must answer."""

    task: int
    """Task id."""
    context: tuple[int, ...]
    """Prompt tokens; the encoder's input of an encoder-decoder backbone."""
    target: tuple[int, ...]
    """Answer tokens, the only ones with a loss."""

    @property
    def length(self) -> int:
        """Prompt and answer together, in tokens."""
        return len(self.context) + len(self.target)


def by_task(rows: Sequence[TokenRow], tasks: int) -> list[list[int]]:
    """Places of the rows of each task, for ``tasks`` tasks."""
    places: list[list[int]] = [[] for _ in range(tasks)]
    for place, row in enumerate(rows):
        places[row.task].append(place)
    return places

"""Encoding of text pairs as token ids, as lm-eval does: training rows and scored rows are the same tokens.

Source: lm_eval 0.4.13, ``TemplateLM._encode_pair`` and ``HFLM.tok_encode``; the tests compare token by token. There are
two differences, where lm-eval scores other tokens than the answer's: a token over the join of prompt and answer, and
special tokens after every text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from mtlbench.errors import DataError

if TYPE_CHECKING:
    from mtlbench.data.examples import Pair

Tokens = tuple[int, ...]
PROBE = "a"
"""A text that shows what a tokenizer adds to every text."""
ANCHORS = ("\n", ":", ".", "a", "1")
"""Texts behind which a continuation is tokenised alone; a token may span the join with some of them."""


def encode_rows(
    tokenizer: Any,
    pairs: Sequence[Pair],
    *,
    task: int,
    architecture: str,
    max_length: int,
    append_eos: bool,
) -> list[TokenRow]:
    """Encode training examples, as the same pairs are scored.

    With ``append_eos``, for tasks whose answer is generated, each answer ends with the end-of-sequence token, and rows
    begin with the tokens that generation is given.

    Raises:
        DataError: an answer is empty, or too long for ``max_length``.
    """
    end: Tokens = ()
    if append_eos:
        if tokenizer.eos_token_id is None:
            raise DataError("The tokenizer has no end-of-sequence token, which tasks scored by generation need.")
        end = (tokenizer.eos_token_id,)
    encode = encode_generated if append_eos else encode_pairs
    encoded = encode(tokenizer, [(p.context, p.target) for p in pairs], architecture=architecture)
    rows = []
    for pair, (context, target) in zip(pairs, encoded, strict=True):
        try:
            kept, target = fit(context, target + end, architecture=architecture, max_length=max_length)
        except DataError as error:
            raise DataError(f"{error} It is {shorten(pair.target, 60)!r}, of {shorten(pair.context, 60)!r}.") from error
        rows.append(TokenRow(task=task, context=kept, target=target, cut=len(context) - len(kept)))
    return rows


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]], *, architecture: str) -> list[tuple[Tokens, Tokens]]:
    """``(context, continuation)`` texts as token ids; each distinct text is tokenised once, all in one call.

    Trailing whitespace of a context is moved to the continuation. For a causal backbone a pair is encoded as one text
    and split; where a token spans the join, context and continuation are encoded each alone, as lm-eval's pull request
    4055 does (0.4.13 drops the beginning of the continuation there). For an encoder-decoder both texts are encoded
    separately, the continuation without special tokens. An empty context becomes the start token.
    """
    stripped_pairs = [_move_blanks(context, continuation) for context, continuation in pairs]
    with_context = [pair for pair in stripped_pairs if pair[0]]
    bare = encode_texts(tokenizer, _bare_texts(stripped_pairs, architecture), special=False)
    if architecture == "causal":
        texts = (text for c, t in with_context for text in (c, c + t))
        whole = encode_texts(tokenizer, texts, special=True, ends=False)
        joined = [t for c, t in with_context if not _begins(whole[c + t], whole[c])]
        bare.update(_encode_alone(tokenizer, joined))
    else:
        whole = encode_texts(tokenizer, (context for context, _ in with_context), special=True)
    encoded: list[tuple[Tokens, Tokens]] = []
    for context, continuation in stripped_pairs:
        if not context:
            encoded.append(_after_start(start_token(tokenizer), bare[continuation]))
        elif architecture == "causal" and _begins(whole[context + continuation], whole[context]):
            encoded.append((whole[context], whole[context + continuation][len(whole[context]) :]))
        else:
            encoded.append((whole[context], bare[continuation]))
    return encoded


def encode_generated(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], *, architecture: str
) -> list[tuple[Tokens, Tokens]]:
    """``(prompt, answer)`` texts of tasks whose answer is generated, as token ids.

    Context and target together begin with the tokens of :func:`encode_prompts`. For a causal backbone, trailing
    whitespace of a prompt belongs to the target, as in :func:`encode_pairs`, where no token spans that join. For an
    encoder-decoder it stays in the input of the encoder, since the decoder begins with the answer.
    """
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in pairs], architecture=architecture)
    if architecture != "causal":
        bare = encode_texts(tokenizer, (answer for _, answer in pairs), special=False)
        return [(prompts[prompt], bare[answer]) for prompt, answer in pairs]
    stripped = {prompt: prompt.rstrip() for prompt, _ in pairs}
    texts = (text for prompt, answer in pairs for text in (prompt + answer, stripped[prompt]) if text)
    whole = encode_texts(tokenizer, texts, special=True, ends=False)
    joined = [t for c, t in pairs if not _begins(whole.get(c + t, ()), prompts[c])]
    alone = _encode_alone(tokenizer, joined)
    encoded: list[tuple[Tokens, Tokens]] = []
    for prompt, answer in pairs:
        row, given = whole.get(prompt + answer, ()), prompts[prompt]
        if answer in alone and not _begins(row, given):
            encoded.append((given, alone[answer]))
            continue
        short = whole.get(stripped[prompt], ())
        context = short if short and _begins(row, short) else given
        encoded.append((context, row[len(context) :]))
    return encoded


def encode_prompts(tokenizer: Any, prompts: Sequence[str], *, architecture: str) -> dict[str, Tokens]:
    """Distinct prompts to the tokens that generation starts from: with the special tokens before a text, for an
    encoder also those after it. A prompt without tokens becomes the start token."""
    encoded = encode_texts(tokenizer, prompts, special=True, ends=architecture != "causal")
    return {prompt: tokens or (start_token(tokenizer),) for prompt, tokens in encoded.items()}


def encode_texts(tokenizer: Any, texts: Iterable[str], *, special: bool, ends: bool = True) -> dict[str, Tokens]:
    """Distinct texts to their tokens, with special tokens if ``special``.

    A text that already begins with the text of the start token gets no special tokens, as in ``HFLM.tok_encode``.

    Args:
        ends: Whether special tokens may stand after a text. Some tokenizers end every text; what a decoder continues
            must not have ended.
    """
    unique = list(dict.fromkeys(texts))
    start = tokenizer.decode([start_token(tokenizer)]) if special else ""
    plain = [text for text in unique if not special or text.startswith(start)]
    marked = [text for text in unique if special and not text.startswith(start)]
    encoded: dict[str, Tokens] = {}
    for group, flag in ((plain, False), (marked, True)):
        if group:
            encoded.update(zip(group, _ids(tokenizer, group, special=flag), strict=True))
    if marked and not ends and (added := special_tokens_after(tokenizer)):
        encoded.update({text: encoded[text][: -len(added)] for text in marked if _ends(encoded[text], added)})
    return encoded


def special_tokens_after(tokenizer: Any) -> Tokens:
    """The special tokens that the tokenizer puts after every text, by what it does with one; most put none there."""
    (plain,), (marked,) = (_ids(tokenizer, [PROBE], special=flag) for flag in (False, True))
    places = [at for at in range(len(marked) - len(plain) + 1) if marked[at : at + len(plain)] == plain]
    return marked[places[-1] + len(plain) :] if plain and places else ()


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


def _ids(tokenizer: Any, texts: list[str], *, special: bool) -> list[Tokens]:
    ids = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
    return [tuple(each) for each in ids]


def _encode_alone(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tokens]:
    """Texts as they are tokenised in the middle of another one: behind the first anchor that merges with none of it.

    A tokenizer may put a blank before the beginning of every text, which a continuation does not have.
    """
    remaining = list(dict.fromkeys(texts))
    encoded: dict[str, Tokens] = {}
    for anchor in ANCHORS if remaining else ():
        (before,) = _ids(tokenizer, [anchor], special=False)
        behind = _ids(tokenizer, [anchor + text for text in remaining], special=False) if before and remaining else []
        found = [(text, row) for text, row in zip(remaining, behind, strict=False) if _begins(row, before)]
        encoded.update({text: row[len(before) :] for text, row in found})
        remaining = [text for text in remaining if text not in encoded]
    encoded.update(zip(remaining, _ids(tokenizer, remaining, special=False) if remaining else [], strict=True))
    return encoded


def _begins(row: Tokens, beginning: Tokens) -> bool:
    """Whether ``row`` is ``beginning`` and at least one token more."""
    return len(row) > len(beginning) and row[: len(beginning)] == beginning


def _ends(row: Tokens, ending: Tokens) -> bool:
    return row[-len(ending) :] == ending


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
    cut: int = 0
    """Tokens of the prompt that were cut off on the left."""
    doc: int = field(default=-1, compare=False)
    """Number of the example in its task's training split; -1 where it is not known."""

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

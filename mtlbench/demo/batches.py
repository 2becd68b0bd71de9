"""Documents to batches of tensors: bucketed by length, and for the encoder-decoder with spans of text taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from mtlbench.demo.corpus import Document
from mtlbench.demo.tokenizer import SENTINELS

_CHUNK = 4096
_LONGEST = 160
# The share of a prompt's tokens that are trained on: they are cheap to leave out and say less than the answers.
_PROMPT_SHARE = 1 / 3

Batch = dict[str, Any]
Row = tuple[list[int], list[int], int]


def _chunks(
    stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Lists of (prompt ids, answer ids), the answer with its leading blank if there is a prompt; no special tokens."""
    while True:
        chunk = list(islice(stream, _CHUNK))
        answers = [f" {each.answer}" if each.prompt else each.answer for each in chunk]
        encoded = tokenizer([each.prompt for each in chunk] + answers, add_special_tokens=False)["input_ids"]
        yield list(zip(encoded[: len(chunk)], encoded[len(chunk) :], strict=True))


def _bucketed(
    stream: Iterator[Document],
    tokenizer: PreTrainedTokenizerFast,
    rng: Random,
    *,
    tokens: int,
    row: Callable[[list[int], list[int]], Row],
) -> Iterator[list[Row]]:
    """Batches of rows of like length, `tokens` input tokens or fewer, shuffled within a chunk; scraps are left out."""
    for chunk in _chunks(stream, tokenizer):
        # Like labels first: a short answer next to a long one would be mostly padding.
        groups: dict[int, list[Row]] = {}
        for each in (row(*pair) for pair in chunk):
            groups.setdefault(len(each[1]) // 6, []).append(each)
        batches: list[list[Row]] = []
        for _, rows in sorted(groups.items()):
            rows.sort(key=lambda each: len(each[0]))
            batches.append([])
            for each in rows:
                if batches[-1] and (len(batches[-1]) + 1) * len(each[0]) > tokens:
                    batches.append([])
                batches[-1].append(each)
        full = [batch for batch in batches if len(batch) * len(batch[-1][0]) > tokens // 2]
        rng.shuffle(full)
        yield from full


def _padded(rows: Sequence[Sequence[float]], value: float) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def causal_batches(
    stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast, rng: Random, *, tokens: int, answer_weight: float
) -> Iterator[Batch]:
    """Next-token batches: `inputs`, `labels` and `weights` `[rows, length]`; one document in ten opens with `<s>`."""
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id

    def row(prompt: list[int], answer: list[int]) -> Row:
        ids = [*([bos] if rng.random() < 0.1 else []), *prompt, *answer, eos][:_LONGEST]
        return ids[:-1], ids[1:], len(answer) + 1

    for rows in _bucketed(stream, tokenizer, rng, tokens=tokens, row=row):
        weights = [
            [float(rng.random() < _PROMPT_SHARE) for _ in ids[tail:]]
            + [1 + answer_weight / (tail - 1)] * (tail - 1)
            + [1.0]
            for ids, _, tail in rows
        ]
        yield {
            # Padding is on the right and weighs nothing, so that causal attention needs no mask.
            "inputs": {"input_ids": _padded([ids for ids, _, _ in rows], pad)},
            "labels": _padded([labels for _, labels, _ in rows], pad),
            "weights": _padded(weights, 0.0),
        }


def seq2seq_batches(
    stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast, rng: Random, *, tokens: int, answer_weight: float
) -> Iterator[Batch]:
    """Encoder-decoder batches: the answer from the prompt, or (one document in seven) spans from the text around."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    sentinels = tokenizer.convert_tokens_to_ids(list(SENTINELS))

    def row(prompt: list[int], answer: list[int]) -> Row:
        if rng.random() < 0.85:
            return [*prompt, eos], [*answer, eos], 1
        source, target = corrupt([*prompt, *answer], rng, sentinels)
        return [*source, eos], [*target, eos], 0

    for rows in _bucketed(stream, tokenizer, rng, tokens=tokens, row=row):
        source, labels = _padded([ids for ids, _, _ in rows], pad), _padded([target for _, target, _ in rows], pad)
        weights = _padded(
            [[1 + direct * answer_weight / len(target)] * (len(target) - 1) + [1.0] for _, target, direct in rows], 0.0
        )
        start = torch.full((len(rows), 1), pad)
        yield {
            "inputs": {
                "input_ids": source,
                "attention_mask": (source != pad).long(),
                "decoder_input_ids": torch.cat([start, labels[:, :-1]], dim=1),
            },
            "labels": labels,
            "weights": weights,
        }


def corrupt(ids: list[int], rng: Random, sentinels: list[int]) -> tuple[list[int], list[int]]:
    """About a fifth of `ids` goes to the target behind sentinels: T5's span corruption (Raffel et al. 2020, 3.1.4)."""
    source: list[int] = []
    target: list[int] = []
    used, index = 0, 0
    while index < len(ids):
        if rng.random() < 0.1 and used < len(sentinels) - 1:
            length = rng.randint(1, 3)
            source.append(sentinels[used])
            target += [sentinels[used], *ids[index : index + length]]
            used, index = used + 1, index + length
        else:
            source.append(ids[index])
            index += 1
    return source, [*target, sentinels[used]]

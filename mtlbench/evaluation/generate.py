"""Greedy generation in batches with per-row task routing; shared prefixes of prompts are computed once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.backbones.transfer import to_device
from mtlbench.errors import DataError
from mtlbench.evaluation.packed_rows import SHARED_PREFIX_COST, common_length
from mtlbench.evaluation.shared_prefixes import SharedPrefixes
from mtlbench.files.heartbeat import beat
from mtlbench.tokens.encode import Tokens
from mtlbench.tokens.facts import MAX_NEW_TOKENS, prompt_room
from mtlbench.tokens.requests import RequestTokens

CACHED_TOKENS = 2**13
"""Least limit on cached tokens per batch, also if the token budget is smaller: more rows per step cost little."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    number: int
    task: int
    tokens: Tokens
    shared_length: int = 0
    """Length of the prefix that is shared with other prompts."""

    @property
    def group(self) -> tuple[int, Tokens]:
        return self.task, self.tokens[: self.shared_length]


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[tuple[str, Mapping[str, Any], int]],
    *,
    architecture: str,
    routing: Routing,
    max_length: int,
    token_budget: int,
    share: bool = False,
    known: RequestTokens | None = None,
) -> list[str]:
    """Continuations of ``(prompt, generation arguments of lm-eval, task id)``, up to the first stop string.

    Args:
        share: Whether common prefixes of prompts may be computed once and cached; needs a decoder-only ``model`` that
            supports a cache before its rows.
        known: Prompts that were tokenised before.

    Raises:
        DataError: a task requires sampling, or more tokens than ``max_length``.
    """
    groups: dict[str, list[int]] = {}
    for number, (_, arguments, _) in enumerate(prompts):
        groups.setdefault(json.dumps(arguments, sort_keys=True), []).append(number)
    texts = [text for text, _, _ in prompts]
    encoded = (known or RequestTokens()).prompts(tokenizer, texts, architecture=architecture)
    generated: dict[int, str] = {}
    for members in groups.values():
        stops, new_tokens = _stops_and_length(tokenizer, prompts[members[0]][1])
        room = prompt_room(prompts[members[0]][1], architecture=architecture, max_length=max_length)
        rows = [_Prompt(n, prompts[n][2], encoded[prompts[n][0]][-room:]) for n in members]
        if share:
            rows = _with_prefixes(rows, new_tokens=new_tokens)
        for batch, prefix in _batches(rows, model, tokenizer, routing, token_budget=token_budget, adding=new_tokens):
            texts = _run(
                model,
                tokenizer,
                batch,
                prefix=prefix,
                architecture=architecture,
                routing=routing,
                stops=stops,
                new_tokens=new_tokens,
            )
            generated.update(zip([prompt.number for prompt in batch], texts, strict=True))
            beat()
    return [generated[number] for number in range(len(prompts))]


def _with_prefixes(rows: list[_Prompt], *, new_tokens: int) -> list[_Prompt]:
    """The prompts with the lengths of their shared prefixes, which are chosen per task."""
    prompts: list[_Prompt] = []
    for _, same in groupby(sorted(rows, key=lambda row: (row.task, row.tokens)), key=lambda row: row.task):
        of_task = list(same)
        # Prompts with a shared prefix form separate batches, each with its own decoding steps.
        runs = shared_prefix_runs([row.tokens for row in of_task], cost=SHARED_PREFIX_COST + new_tokens)
        prompts += [replace(row, shared_length=length) for low, high, length in runs for row in of_task[low:high]]
    return prompts


def _batches(
    rows: list[_Prompt], model: nn.Module, tokenizer: Any, routing: Routing, *, token_budget: int, adding: int
) -> Iterator[tuple[list[_Prompt], SharedPrefixes | None]]:
    """Batches of prompts of similar length, longest first, with their shared prefix."""
    rows.sort(key=lambda row: (row.shared_length, row.group, len(row.tokens)), reverse=True)
    cached = max(token_budget, CACHED_TOKENS)
    for group, same in groupby(rows, key=lambda row: row.group if row.shared_length else None):
        remaining = list(same)
        if group is None:
            remaining.sort(key=lambda row: len(row.tokens), reverse=True)
        prefix = None if group is None else SharedPrefixes(model, routing, [group], pad_id=_pad(tokenizer))
        while remaining:
            longest = len(remaining[0].tokens)
            size = max(1, min(token_budget // (longest - remaining[0].shared_length), cached // (longest + adding)))
            yield remaining[:size], prefix
            remaining = remaining[size:]


def _stops_and_length(tokenizer: Any, arguments: Mapping[str, Any]) -> tuple[list[str], int]:
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    known = normalize_gen_kwargs(dict(arguments), MAX_NEW_TOKENS)
    if known.get("do_sample"):
        raise DataError(f"Generation arguments {dict(arguments)} ask for sampling; only greedy decoding is supported.")
    eos = tokenizer.decode([tokenizer.eos_token_id]) if tokenizer.eos_token_id is not None else None
    return handle_stop_sequences(known.get("until"), eos=eos), int(known["max_gen_toks"])


def _run(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[_Prompt],
    *,
    prefix: SharedPrefixes | None,
    architecture: str,
    routing: Routing,
    stops: list[str],
    new_tokens: int,
) -> list[str]:
    from lm_eval.models.utils import postprocess_generated_text
    from lm_eval.models.utils_hf import stop_sequences_criteria

    device = next(model.parameters()).device
    shared_length, width, pad = rows[0].shared_length, max(len(row.tokens) for row in rows), _pad(tokenizer)
    # Padding goes between prefix and rest: the next token is in the last column, positions follow from the mask.
    gaps = [width - len(row.tokens) for row in rows]
    padded = [
        [*r.tokens[:shared_length], *[pad] * gap, *r.tokens[shared_length:]] for r, gap in zip(rows, gaps, strict=True)
    ]
    attended = [[*[1] * shared_length, *[0] * gap, *[1] * (width - shared_length - gap)] for gap in gaps]
    tasks = [row.task for row in rows]
    ids, mask, tasks_of_rows = to_device([torch.tensor(numbers) for numbers in (padded, attended, tasks)], device)
    cache = {} if prefix is None else {"past_key_values": prefix.growing(len(rows))}
    prompt_width = width if architecture == "causal" else 1
    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    with torch.no_grad(), routing.of(tasks_of_rows):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            **cache,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=ends if ends is not None else tokenizer.eos_token_id,
            stopping_criteria=stop_sequences_criteria(tokenizer, stops, prompt_width, len(rows)),
        )
    texts = tokenizer.batch_decode(output[:, prompt_width:].tolist(), skip_special_tokens=True)
    return [postprocess_generated_text(text, stops, None) for text in texts]


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


PrefixRun = tuple[int, int, int]
"""First row, last + 1, and the length of their shared prefix; 0 without one."""


def shared_prefix_runs(rows: Sequence[Tokens], *, cost: int = SHARED_PREFIX_COST) -> list[PrefixRun]:
    """Partition of sorted ``rows`` into runs with a shared prefix that saves most tokens.

    A shared prefix never covers a whole row.

    Args:
        cost: Overhead of a shared prefix, in tokens.
    """
    shared = [min(common_length(a, b), len(a) - 1, len(b) - 1) for a, b in pairwise(rows)]

    def best(low: int, high: int) -> tuple[int, list[PrefixRun]]:
        if high - low == 1:
            return 0, [(low, high, 0)]
        least = min(shared[low : high - 1])
        whole = (high - low - 1) * least - cost
        ends = [low, *(at + 1 for at in range(low, high - 1) if shared[at] == least), high]
        options = [best(*bounds) for bounds in pairwise(ends)]
        saved = sum(savings for savings, _ in options)
        if whole > saved:
            return whole, [(low, high, least)]
        return saved, [run for _, runs in options for run in runs]

    return best(0, len(rows))[1] if rows else []

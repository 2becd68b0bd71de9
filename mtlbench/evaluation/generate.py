"""Greedy generation in batches, each row routed to its task; what prompts begin with is read once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import nn

from mtlbench.api.routing import Routing
from mtlbench.errors import DataError
from mtlbench.evaluation.packed_rows import SHARED_PREFIX_COST, common_length
from mtlbench.evaluation.shared_prefixes import SharedPrefixes
from mtlbench.files.heartbeat import beat
from mtlbench.tokens.encode import Tokens, encode_texts

MAX_NEW_TOKENS = 256
"""lm-eval's own limit where a task sets none."""
KEPT_TOKENS = 2**13
"""Tokens whose keys and values a batch may keep where the token budget is smaller: a step of more rows costs little."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    number: int
    task: int
    tokens: Tokens
    ahead: int = 0
    """How many of them are read once for several prompts."""

    @property
    def group(self) -> tuple[int, Tokens]:
        return self.task, self.tokens[: self.ahead]


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
) -> list[str]:
    """Continuations of ``(prompt, generation arguments of lm-eval, task id)``, up to the first stop string.

    Args:
        share: Whether what prompts of a task begin with may be read once and its cache put before them; for a
            decoder-only ``model`` whose rows may be read behind a cache.

    Raises:
        DataError: a task asks for sampling, or for more tokens than ``max_length`` holds.
    """
    groups: dict[str, list[int]] = {}
    for number, (_, arguments, _) in enumerate(prompts):
        groups.setdefault(json.dumps(arguments, sort_keys=True), []).append(number)
    encoded = encode_texts(tokenizer, (text for text, _, _ in prompts), special=True)
    made: dict[int, str] = {}
    for members in groups.values():
        stops, new_tokens = _stops_and_length(tokenizer, prompts[members[0]][1])
        room = max_length - new_tokens if architecture == "causal" else max_length
        if room < 1:
            raise DataError(
                f"Generating {new_tokens} tokens leaves no room for a prompt within --max-length {max_length}. "
                f"Raise --max-length above {new_tokens}."
            )
        rows = [_Prompt(n, prompts[n][2], encoded[prompts[n][0]][-room:]) for n in members]
        if share:
            rows = _sharing(rows, new_tokens=new_tokens)
        for batch, trunk in _batches(rows, model, tokenizer, routing, token_budget=token_budget, adding=new_tokens):
            texts = _run(
                model,
                tokenizer,
                batch,
                trunk=trunk,
                architecture=architecture,
                routing=routing,
                stops=stops,
                new_tokens=new_tokens,
            )
            made.update(zip([prompt.number for prompt in batch], texts, strict=True))
            beat()
    return [made[number] for number in range(len(prompts))]


def _sharing(rows: list[_Prompt], *, new_tokens: int) -> list[_Prompt]:
    """The same, each with what it has in common with enough others of its task."""
    found: list[_Prompt] = []
    for _, same in groupby(sorted(rows, key=lambda row: (row.task, row.tokens)), key=lambda row: row.task):
        of_task = list(same)
        # prompts behind a beginning make batches of their own, each with steps of its own
        runs = shared_beginnings([row.tokens for row in of_task], cost=SHARED_PREFIX_COST + new_tokens)
        found += [replace(row, ahead=ahead) for low, high, ahead in runs for row in of_task[low:high]]
    return found


def _batches(
    rows: list[_Prompt], model: nn.Module, tokenizer: Any, routing: Routing, *, token_budget: int, adding: int
) -> Iterator[tuple[list[_Prompt], SharedPrefixes | None]]:
    """Prompts of like length, longest first, with the beginning that was read ahead of them all."""
    rows.sort(key=lambda row: (row.ahead, row.group, len(row.tokens)), reverse=True)
    kept = max(token_budget, KEPT_TOKENS)
    for ahead, same in groupby(rows, key=lambda row: row.group if row.ahead else None):
        behind = list(same)
        if ahead is None:
            behind.sort(key=lambda row: len(row.tokens), reverse=True)
        trunk = None if ahead is None else SharedPrefixes(model, routing, [ahead], pad_id=_pad(tokenizer))
        while behind:
            longest = len(behind[0].tokens)
            size = max(1, min(token_budget // (longest - behind[0].ahead), kept // (longest + adding)))
            yield behind[:size], trunk
            behind = behind[size:]


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
    trunk: SharedPrefixes | None,
    architecture: str,
    routing: Routing,
    stops: list[str],
    new_tokens: int,
) -> list[str]:
    from lm_eval.models.utils import postprocess_generated_text
    from lm_eval.models.utils_hf import stop_sequences_criteria

    device = next(model.parameters()).device
    ahead, width, pad = rows[0].ahead, max(len(row.tokens) for row in rows), _pad(tokenizer)
    # Padded on the left of what is a row's own: its next token is in the last column, positions follow from the mask.
    gaps = [width - len(row.tokens) for row in rows]
    padded = [[*r.tokens[:ahead], *[pad] * gap, *r.tokens[ahead:]] for r, gap in zip(rows, gaps, strict=True)]
    kept = [[*[1] * ahead, *[0] * gap, *[1] * (width - ahead - gap)] for gap in gaps]
    ids, mask = torch.tensor(padded, device=device), torch.tensor(kept, device=device)
    cache = {} if trunk is None else {"past_key_values": trunk.growing(len(rows))}
    given = width if architecture == "causal" else 1
    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    with torch.no_grad(), routing.of(torch.tensor([row.task for row in rows], device=device)):
        made = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            **cache,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=ends if ends is not None else tokenizer.eos_token_id,
            stopping_criteria=stop_sequences_criteria(tokenizer, stops, given, len(rows)),
        )
    texts = tokenizer.batch_decode(made[:, given:].tolist(), skip_special_tokens=True)
    return [postprocess_generated_text(text, stops, None) for text in texts]


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


Run = tuple[int, int, int]
"""First row, last + 1, and how many tokens are read once for them; 0 for rows that are read whole."""


def shared_beginnings(rows: Sequence[Tokens], *, cost: int = SHARED_PREFIX_COST) -> list[Run]:
    """Runs of sorted ``rows`` that together save most tokens; at least one token of every row stays its own.

    Args:
        cost: What a beginning read ahead has to save, in tokens.
    """
    shared = [min(common_length(a, b), len(a) - 1, len(b) - 1) for a, b in pairwise(rows)]

    def best(low: int, high: int) -> tuple[int, list[Run]]:
        if high - low == 1:
            return 0, [(low, high, 0)]
        least = min(shared[low : high - 1])
        whole = (high - low - 1) * least - cost
        ends = [low, *(at + 1 for at in range(low, high - 1) if shared[at] == least), high]
        parts = [best(*part) for part in pairwise(ends)]
        saved = sum(part for part, _ in parts)
        if whole > saved:
            return whole, [(low, high, least)]
        return saved, [run for _, runs in parts for run in runs]

    return best(0, len(rows))[1] if rows else []

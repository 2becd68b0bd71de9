"""Greedy generation in batches, each row routed to its task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mtlbench.engine.encode import encode_texts
from mtlbench.engine.routing import Routing
from mtlbench.errors import DataError
from mtlbench.processes.pulse import beat

MAX_NEW_TOKENS = 256
"""lm-eval's own limit where a task sets none."""


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[tuple[str, Mapping[str, Any], int]],
    *,
    architecture: str,
    routing: Routing,
    max_length: int,
    token_budget: int,
) -> list[str]:
    """Continuations of ``(prompt, generation arguments of lm-eval, task id)``, up to the first stop string.

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
        members.sort(key=lambda n: len(encoded[prompts[n][0]]), reverse=True)
        while members:
            longest = min(len(encoded[prompts[members[0]][0]]), room)
            size = max(1, token_budget // (longest + new_tokens))
            batch, members = members[:size], members[size:]
            texts = _run(
                model,
                tokenizer,
                [encoded[prompts[n][0]][-room:] for n in batch],
                tasks=[prompts[n][2] for n in batch],
                architecture=architecture,
                routing=routing,
                stops=stops,
                new_tokens=new_tokens,
            )
            made.update(zip(batch, texts, strict=True))
            beat()
    return [made[number] for number in range(len(prompts))]


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
    rows: list[tuple[int, ...]],
    *,
    tasks: list[int],
    architecture: str,
    routing: Routing,
    stops: list[str],
    new_tokens: int,
) -> list[str]:
    from lm_eval.models.utils import postprocess_generated_text
    from lm_eval.models.utils_hf import stop_sequences_criteria

    device = next(model.parameters()).device
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # Padded on the left, so that every row's next token is in the last column; positions follow from the mask.
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    given = width if architecture == "causal" else 1
    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    with torch.no_grad(), routing.of(torch.tensor(tasks, device=device)):
        made = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=ends if ends is not None else tokenizer.eos_token_id,
            stopping_criteria=stop_sequences_criteria(tokenizer, stops, given, len(rows)),
        )
    texts = tokenizer.batch_decode(made[:, given:].tolist(), skip_special_tokens=True)
    return [postprocess_generated_text(text, stops, None) for text in texts]

"""Scores of a batch of packed rows by a causal or an encoder-decoder backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.api.routing import Routing
from mtlbench.backbones.head import logits_at
from mtlbench.compat import attention_of
from mtlbench.evaluation.packed_rows import PackedRow
from mtlbench.evaluation.score import PackedBatch, attention_mask
from mtlbench.evaluation.shared_prefixes import SharedPrefixes
from mtlbench.nn.prefixes.places import attentions
from mtlbench.tokens.encode import Tokens
from mtlbench.training.tail import narrow_tail, places_by_task


class CausalReader:
    """Scores with a decoder-only backbone."""

    def __init__(self, model: Any, routing: Routing, *, pad_id: int) -> None:
        self.model, self.routing, self.pad_id = model, routing, pad_id
        self.device = next(model.parameters()).device

    def prefixes(self, groups: Sequence[tuple[int, Tokens]]) -> SharedPrefixes:
        """Compute the keys and values of these shared prefixes."""
        return SharedPrefixes(self.model, self.routing, groups, pad_id=self.pad_id)

    def scores(
        self, batch: Sequence[PackedRow], prefixes: SharedPrefixes | None = None, *, plain: bool = False
    ) -> Tensor:
        """Log-likelihood and greedy flag of each answer token ``[2, tokens]``, in row order.

        With ``plain`` the last layer is computed for all tokens, not only at read-out positions.
        """
        rows = PackedBatch(batch, pad_id=self.pad_id, device=self.device)
        inputs: dict[str, Any] = {"use_cache": False}
        if prefixes is not None:
            cache, seen = prefixes.before([(packed.group[0], packed.prefix) for packed in batch])
            inputs |= {"past_key_values": cache, "use_cache": True}
            inputs |= {"attention_mask": self._mask(rows.tree_mask(seen)), "position_ids": rows.positions}
        elif rows.branches:
            inputs |= {"attention_mask": self._mask(rows.tree_mask()), "position_ids": rows.positions}
        else:
            inputs |= {"attention_mask": rows.padding_mask()}
        contexts = None if prefixes is not None or rows.branches else rows.tensor([packed.context for packed in batch])
        tasks = [packed.group[0] for packed in batch]
        of_token = [tasks[at // rows.width] for at in rows.needed]
        places = None if plain else places_by_task(rows.needed, of_token, device=self.device)
        with (
            narrow_tail(self.model, places, self.routing),
            self.routing.of(rows.tensor(tasks), contexts),
            logits_at(self.model, rows.index),
        ):
            logits = self.model(input_ids=rows.ids, **inputs).logits
        return rows.scores(logits)

    def _mask(self, mask: Tensor) -> Tensor:
        return attention_mask(mask, attention_of(self.model.get_decoder().config), self.model.dtype)


class Seq2seqReader:
    """Scores with an encoder-decoder: ``model.get_encoder()``, then ``model(encoder_outputs=...)``, each with routing.

    Every distinct context of a batch is encoded once.
    """

    def __init__(self, model: Any, routing: Routing, *, pad_id: int) -> None:
        self.model, self.routing, self.pad_id = model, routing, pad_id
        self.device = next(model.parameters()).device

    def scores(self, batch: Sequence[PackedRow], prefixes: None = None, *, plain: bool = False) -> Tensor:
        """Log-likelihood and greedy flag of each answer token ``[2, tokens]``, in row order."""
        from transformers.modeling_outputs import BaseModelOutput

        rows = PackedBatch(batch, pad_id=self.pad_id, device=self.device)
        hidden, prompt_mask = self._encoded([packed.group for packed in batch])
        mask, positions = rows.padding_mask(), None
        if rows.branches:
            kind = attention_of(self.model.get_decoder().config)
            mask, positions = attention_mask(rows.tree_mask(), kind, self.model.dtype), rows.positions
        tasks = rows.tensor([packed.group[0] for packed in batch])
        with self.routing.of(tasks), logits_at(self.model, rows.index), at_positions(self.model, positions):
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=prompt_mask,
                decoder_input_ids=rows.ids,
                decoder_attention_mask=mask,
                use_cache=False,
            ).logits
        return rows.scores(logits)

    def _encoded(self, groups: Sequence[tuple[int, Tokens]]) -> tuple[Tensor, Tensor]:
        """Hidden states ``[rows, length, hidden]`` of the contexts, and 1 where there are tokens ``[rows, length]``."""
        distinct = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        width = max(len(context) for _, context in distinct)
        ids = np.full((len(distinct), width), self.pad_id, dtype=np.int64)
        for at, (_, context) in enumerate(distinct):
            ids[at, : len(context)] = context
        lengths = torch.tensor([len(context) for _, context in distinct], device=self.device)
        mask = (torch.arange(width, device=self.device) < lengths[:, None]).long()
        with self.routing.of(torch.tensor([task for task, _ in distinct], device=self.device)):
            encoder = self.model.get_encoder()
            hidden = encoder(input_ids=torch.from_numpy(ids).to(self.device), attention_mask=mask).last_hidden_state
        if len(distinct) == len(groups):
            return hidden, mask
        of_row = torch.tensor([distinct[group] for group in groups], device=self.device)
        return hidden.index_select(0, of_row), mask.index_select(0, of_row)


@contextmanager
def at_positions(model: Any, positions: Tensor | None) -> Iterator[None]:
    """Inside, a decoder with a learned relative position bias uses the token positions ``positions [rows, length]``.

    Such decoders (the T5 family) take no position ids: they use the index of a token in its row.
    """
    if positions is None:
        yield
        return
    depth = int(positions.max()) + 1
    layers = [m for m in attentions(model.get_decoder()) if getattr(m, "has_relative_attention_bias", False)]
    for layer in layers:
        layer.compute_bias = _bias_at(layer.compute_bias, positions, depth)
    try:
        yield
    finally:
        for layer in layers:
            del layer.compute_bias


def _bias_at(stock: Any, positions: Tensor, depth: int) -> Any:
    def compute(queries: int, keys: int, device: Any = None, past_seen_tokens: int = 0) -> Tensor:
        """``[rows, heads, queries, keys]``; with ``past_seen_tokens`` the keys are those of a prefix."""
        if past_seen_tokens:
            ahead: Tensor = stock(depth, keys, device=device, past_seen_tokens=past_seen_tokens)[0]
            return ahead[:, positions].transpose(0, 1)
        by_depth: Tensor = stock(depth, depth, device=device)[0]
        return by_depth[:, positions[:, :, None], positions[:, None, :]].transpose(0, 1)

    return compute

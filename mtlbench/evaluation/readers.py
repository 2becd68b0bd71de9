"""Logits of a batch of packs from a causal or an encoder-decoder backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.api.routing import Routing
from mtlbench.backbones.head import picked_rows
from mtlbench.evaluation.packed_rows import PackedRow
from mtlbench.evaluation.score import Shape, as_kernel_takes
from mtlbench.evaluation.shared_prefixes import SharedPrefixes
from mtlbench.nn.prefixes.places import attentions
from mtlbench.tokens.encode import Tokens
from mtlbench.training.tail import narrow_tail, places_by_task


class CausalReader:
    """A decoder-only backbone."""

    def __init__(self, model: Any, routing: Routing, *, pad_id: int) -> None:
        self.model, self.routing, self.pad_id = model, routing, pad_id
        self.device = next(model.parameters()).device

    def trunks(self, groups: Sequence[tuple[int, Tokens]]) -> SharedPrefixes:
        """Read these trunks ahead."""
        return SharedPrefixes(self.model, self.routing, groups, pad_id=self.pad_id)

    def scores(
        self, batch: Sequence[PackedRow], trunks: SharedPrefixes | None = None, *, plain: bool = False
    ) -> Tensor:
        """Log-likelihood and greedy flag of each answer token ``[2, tokens]``, pack by pack.

        With ``plain`` the last layer is computed for all tokens.
        """
        shape = Shape(batch, pad_id=self.pad_id, device=self.device)
        inputs: dict[str, Any] = {"use_cache": False}
        if trunks is not None:
            cache, seen = trunks.before([(pack.group[0], pack.trunk) for pack in batch])
            inputs |= {"past_key_values": cache, "use_cache": True}
            inputs |= {"attention_mask": self._mask(shape.tree_mask(seen)), "position_ids": shape.positions}
        elif shape.branches:
            inputs |= {"attention_mask": self._mask(shape.tree_mask()), "position_ids": shape.positions}
        else:
            inputs |= {"attention_mask": shape.padding_mask()}
        contexts = None if trunks is not None or shape.branches else shape.tensor([pack.context for pack in batch])
        tasks = [pack.group[0] for pack in batch]
        of_token = [tasks[at // shape.width] for at in shape.needed]
        places = None if plain else places_by_task(shape.needed, of_token, device=self.device)
        with (
            narrow_tail(self.model, places, self.routing),
            self.routing.of(shape.tensor(tasks), contexts),
            picked_rows(self.model, shape.index),
        ):
            logits = self.model(input_ids=shape.ids, **inputs).logits
        return shape.scores(logits)

    def _mask(self, mask: Tensor) -> Tensor:
        return as_kernel_takes(mask, self.model.get_decoder().config._attn_implementation, self.model.dtype)


class Seq2seqReader:
    """An encoder-decoder backbone: ``model.get_encoder()``, then ``model(encoder_outputs=...)``, each in its routing.

    Every distinct context of a batch is encoded once.
    """

    def __init__(self, model: Any, routing: Routing, *, pad_id: int) -> None:
        self.model, self.routing, self.pad_id = model, routing, pad_id
        self.device = next(model.parameters()).device

    def scores(self, batch: Sequence[PackedRow], trunks: None = None, *, plain: bool = False) -> Tensor:
        """Log-likelihood and greedy flag of each answer token ``[2, tokens]``, pack by pack."""
        from transformers.modeling_outputs import BaseModelOutput

        shape = Shape(batch, pad_id=self.pad_id, device=self.device)
        hidden, prompt_mask = self._encoded([pack.group for pack in batch])
        mask, places = shape.padding_mask(), None
        if shape.branches:
            kind = self.model.get_decoder().config._attn_implementation
            mask, places = as_kernel_takes(shape.tree_mask(), kind, self.model.dtype), shape.positions
        tasks = shape.tensor([pack.group[0] for pack in batch])
        with self.routing.of(tasks), picked_rows(self.model, shape.index), placed(self.model, places):
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=prompt_mask,
                decoder_input_ids=shape.ids,
                decoder_attention_mask=mask,
                use_cache=False,
            ).logits
        return shape.scores(logits)

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
def placed(model: Any, positions: Tensor | None) -> Iterator[None]:
    """Inside, a decoder with a learned relative position bias takes its tokens to be at ``positions [rows, length]``.

    Such decoders (T5's family) read a token's position off its place in the row.
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

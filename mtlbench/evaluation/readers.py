"""Scores of a batch of packed rows by a causal or an encoder-decoder backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from mtlbench.api.routing import Routing
from mtlbench.backbones.head import logits_at
from mtlbench.compat import attention_of
from mtlbench.evaluation.packed_rows import PackedRow
from mtlbench.evaluation.score import EncoderInput, attention_mask, packed_batch
from mtlbench.evaluation.shared_prefixes import SharedPrefixes
from mtlbench.nn.packed_attention import right_padded
from mtlbench.nn.packing import passes_masks
from mtlbench.nn.prefixes.places import attentions
from mtlbench.tokens.encode import Tokens
from mtlbench.training.tail import narrow_tail


class CausalReader:
    """Scores with a decoder-only backbone."""

    def __init__(self, model: Any, routing: Routing, *, pad_id: int) -> None:
        self.model, self.routing, self.pad_id = model, routing, pad_id
        self.device = next(model.parameters()).device
        self.unmasked = False
        """Whether rows with one sequence each are read by :func:`~mtlbench.nn.packed_attention.right_padded`."""

    def prefixes(self, groups: Sequence[tuple[int, Tokens]]) -> SharedPrefixes:
        """Compute the keys and values of these shared prefixes."""
        return SharedPrefixes(self.model, self.routing, groups, pad_id=self.pad_id)

    def scores(
        self, batch: Sequence[PackedRow], prefixes: SharedPrefixes | None = None, *, plain: bool = False
    ) -> Tensor:
        """Log-likelihood and greedy flag of each answer token ``[2, tokens]``, in row order.

        With ``plain`` the last layer is computed for all tokens, not only at read-out positions.
        """
        numbers = None if prefixes is None else prefixes.numbers([(row.group[0], row.prefix) for row in batch])
        rows = packed_batch(batch, pad_id=self.pad_id, device=self.device, narrow=not plain, prefixes=numbers)
        contexts = None if prefixes is not None or rows.branches else rows.contexts
        with ExitStack() as stack:
            inputs: dict[str, Any] = {"use_cache": False}
            if prefixes is not None:
                assert rows.prefixes is not None
                cache, seen = prefixes.before(rows.prefixes)
                inputs |= {"past_key_values": cache, "use_cache": True}
                inputs |= {"attention_mask": self._mask(rows.tree_mask(seen)), "position_ids": rows.positions}
            elif rows.branches:
                inputs |= {"attention_mask": self._mask(rows.tree_mask()), "position_ids": rows.positions}
            elif self.unmasked:
                mask = stack.enter_context(right_padded(self.model))
                inputs |= {"attention_mask": mask, "position_ids": rows.positions}
            else:
                inputs |= {"attention_mask": rows.padding_mask()}
            stack.enter_context(narrow_tail(self.model, rows.places, self.routing))
            stack.enter_context(self.routing.of(rows.tasks, contexts))
            stack.enter_context(logits_at(self.model, rows.index))
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
        self._unread = passes_masks(model, longest=0)

    def scores(self, batch: Sequence[PackedRow], prefixes: None = None, *, plain: bool = False) -> Tensor:
        """Log-likelihood and greedy flag of each answer token ``[2, tokens]``, in row order."""
        from transformers.modeling_outputs import BaseModelOutput

        rows = packed_batch(batch, pad_id=self.pad_id, device=self.device, encoder=True)
        assert rows.source is not None
        hidden, prompt_mask = self._encoded(rows.source)
        # no token of a decoder sees padding behind it
        mask, positions = None if self._unread else rows.padding_mask(), None
        if rows.branches:
            kind = attention_of(self.model.get_decoder().config)
            mask, positions = attention_mask(rows.tree_mask(), kind, self.model.dtype), rows.positions
        with (
            self.routing.of(rows.tasks),
            logits_at(self.model, rows.index),
            at_positions(self.model, positions, depth=rows.deepest + 1),
        ):
            logits = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=prompt_mask,
                decoder_input_ids=rows.ids,
                decoder_attention_mask=mask,
                use_cache=False,
            ).logits
        return rows.scores(logits)

    def _encoded(self, source: EncoderInput) -> tuple[Tensor, Tensor]:
        """Hidden states ``[rows, length, hidden]`` of the contexts, and where there are tokens.

        That is 1 or 0 ``[rows, length]``; or a mask that transformers passes on unread ``[rows, 1, 1, length]``.
        """
        mask = source.padding_mask()
        if self._unread:
            mask = mask.bool()[:, None, None]
        with self.routing.of(source.tasks):
            hidden = self.model.get_encoder()(input_ids=source.ids, attention_mask=mask).last_hidden_state
        if source.of_row is None:
            return hidden, mask
        return hidden.index_select(0, source.of_row), mask.index_select(0, source.of_row)


@contextmanager
def at_positions(model: Any, positions: Tensor | None, *, depth: int) -> Iterator[None]:
    """Inside, a decoder with a learned relative position bias uses the token positions ``positions [rows, length]``,
    all below ``depth``.

    Such decoders (the T5 family) take no position ids: they use the index of a token in its row.
    """
    if positions is None:
        yield
        return
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

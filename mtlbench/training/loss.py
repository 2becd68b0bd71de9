"""Losses per row, without a loop over rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.backbones.head import logits_at
from mtlbench.nn.packed_attention import packed, right_padded
from mtlbench.training.batches import Batch


@dataclass(frozen=True, eq=False)
class ModelReadOut:
    """What a model makes of a batch where its labels are."""

    logits: Tensor
    """``[labels, vocabulary]``."""
    hidden: Tensor
    """Last hidden states of the decoder ``[labels, width]``."""


@contextmanager
def running(model: nn.Module, batch: Batch, routing: Routing) -> Iterator[None]:
    """Inside, layers know the rows of ``batch``; a backward belongs inside too, as it may compute layers again."""
    attention = right_padded(model) if batch.unmasked else packed(model, batch.packing)
    with routing.of(batch.tasks, batch.contexts, batch.packing), attention:
        yield


class BatchAnswers:
    """The answers of a batch: what a model makes of them, and losses of their tokens as losses of rows.

    Attributes:
        labels: Token ids of the answers ``[labels]``.
    """

    def __init__(self, model: nn.Module, batch: Batch, routing: Routing) -> None:
        self._model, self._batch, self._routing = model, batch, routing
        self.labels = batch.label_ids

    def logits(self) -> Tensor:
        """A forward of the model: logits ``[labels, vocabulary]``, computed only where there are labels.

        A backward of them must run inside :func:`running` too where the model recomputes layers.
        """
        with running(self._model, self._batch, self._routing), logits_at(self._model, self._batch.label_index):
            logits: Tensor = self._model(**self._batch.inputs, use_cache=False).logits
        return logits

    def read(self) -> ModelReadOut:
        """The same with the hidden states before them."""
        host: Any = self._model
        kept: list[Tensor] = []
        handle = host.get_decoder().register_forward_hook(lambda _, __, output: kept.append(output[0]))
        try:
            logits = self.logits()
        finally:
            handle.remove()
        hidden = kept[0]
        return ModelReadOut(logits, hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._batch.label_index))

    def token_losses(self, logits: Tensor) -> Tensor:
        """Cross entropy of each answer token, float32 ``[labels]``."""
        return nn.functional.cross_entropy(logits.float(), self.labels, reduction="none")

    def by_row(self, values: Tensor) -> Tensor:
        """Means of the tokens' ``values [labels]`` over each row's answer ``[rows]``."""
        batch = self._batch
        sums = torch.zeros(batch.rows, dtype=values.dtype, device=values.device)
        return sums.index_add(0, batch.label_rows, values * batch.label_weights)

    def losses(self) -> Tensor:
        """Mean token cross entropy of each row, float32 ``[rows]``."""
        return self.by_row(self.token_losses(self.logits()))


def row_losses(model: nn.Module, batch: Batch, routing: Routing) -> Tensor:
    """Mean token cross entropy of each row, float32 ``[rows]``; logits are computed only where there are labels.

    A backward of the result must run inside :func:`running` too where the model recomputes layers.
    """
    return BatchAnswers(model, batch, routing).losses()

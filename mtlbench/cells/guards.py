"""Checks made on every cell. Each is true when the promise held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import Backbone
from mtlbench.backbones.head import logits_at
from mtlbench.training.batches import Batch

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference of logits that counts as equal, relative to the largest logit."""
MEANING: Mapping[str, str] = {
    "equal_to_backbone_at_start": "its logits differ from the backbone's before the first step; set identity_at_start "
    "= False if that is meant.",
    "trained": "no trainable parameter moved.",
    "keys_equal": "attached, trained and saved parameter names are not the same set.",
    "reloaded_equal": "the saved adapter gives other logits when it is read back.",
    "backbone_unchanged": "a frozen weight was written to; merging must make a new tensor.",
}
"""Name of a check to what it means that it did not hold."""


@torch.no_grad()
def label_logits(model: nn.Module, batch: Batch, routing: Routing) -> Tensor:
    """Logits ``[labels, vocabulary]`` in float32 where ``batch`` has labels, in evaluation mode."""
    training = model.training
    model.eval()
    with routing.of(batch.tasks, batch.contexts), logits_at(model, batch.label_index):
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
    model.train(training)
    return logits.float()


def backbone_unchanged(backbone: Backbone) -> bool:
    """The frozen weights are, bit for bit, what was loaded."""
    return backbone.checksum.holds()


def trained(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """At least one trainable parameter moved, by their values or sums of them by name."""
    return any(not torch.equal(value, after[name]) for name, value in before.items() if name in after)


def same_logits(one: Tensor, other: Tensor, *, tolerance: float) -> bool:
    """Two sets of logits agree to ``tolerance`` times the largest of the first: at the start, after a reload."""
    return one.shape == other.shape and bool((one - other).abs().max() <= tolerance * one.abs().max())


def same_names(*sets: Iterable[str]) -> bool:
    """All key sets are one set: saved = attached = trained."""
    return len({frozenset(names) for names in sets}) <= 1

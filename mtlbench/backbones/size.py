"""What a token costs in a backbone, read off its structure, on the meta device too."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

KEPT_PER_NORM = 2
"""Times its width that a norm keeps for backward: its input, and the same in float32 or normalised."""


@dataclass(frozen=True)
class BackboneSize:
    """What one token costs in a backbone. An encoder-decoder's row is nearly all encoder: its decoder is left out."""

    parameters: int
    multiplied: int
    """Weights that each token is multiplied with."""
    kept: int
    """Numbers kept for backward for each token."""
    kept_checkpointed: int
    """The same where layers are computed again in backward: the input of every layer, and one layer's own."""


def backbone_size(model: nn.Module) -> BackboneSize:
    """The outputs of linear layers and the inputs of norms stay for backward; the head is computed on few tokens."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linears = norms = 0
    multiplied = 0
    width = 0
    for name, module in model.named_modules():
        if ".decoder." in f".{name}." and hasattr(model, "get_encoder") and _is_encoder_decoder(model):
            continue
        if isinstance(module, nn.Linear) and module is not head:
            linears += module.out_features
            multiplied += module.in_features * module.out_features
            width = width or module.in_features
        elif "norm" in type(module).__name__.lower():
            norms += sum(p.numel() for p in module.parameters(recurse=False) if p.dim() == 1)
    layers = _layers(model)
    kept = linears + KEPT_PER_NORM * norms
    return BackboneSize(
        parameters=len({id(p) for p in model.parameters()}) and sum(p.numel() for p in model.parameters()),
        multiplied=multiplied,
        kept=kept,
        kept_checkpointed=layers * width + kept // max(layers, 1),
    )


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _layers(model: nn.Module) -> int:
    return max((len(module) for module in model.modules() if isinstance(module, nn.ModuleList)), default=1)

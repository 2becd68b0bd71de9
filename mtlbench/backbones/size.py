"""Cost of a token in a backbone, derived from its modules, also on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

ACTIVATIONS_PER_NORM = 2
"""Multiples of its width that a norm saves for backward: its input, and the same in float32 or normalised."""


@dataclass(frozen=True)
class BackboneSize:
    """Cost of one token in a backbone. The decoder of an encoder-decoder is ignored: targets are short."""

    parameters: int
    multiplied: int
    """Weights multiplied per token."""
    activations: int
    """Values saved for backward per token."""
    activations_checkpointed: int
    """The same with activation checkpointing: the input of every layer, and all values of one layer."""


def backbone_size(model: nn.Module) -> BackboneSize:
    """Assumes that outputs of linear layers and inputs of norms are saved; ignores the head, which sees few tokens."""
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
    activations = linears + ACTIVATIONS_PER_NORM * norms
    return BackboneSize(
        parameters=len({id(p) for p in model.parameters()}) and sum(p.numel() for p in model.parameters()),
        multiplied=multiplied,
        activations=activations,
        activations_checkpointed=layers * width + activations // max(layers, 1),
    )


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _layers(model: nn.Module) -> int:
    return max((len(module) for module in model.modules() if isinstance(module, nn.ModuleList)), default=1)

"""PrefixNAS: an encoder that makes one key/value prefix and searches its own layers while it trains (PEML, eq. 6-8).

Each searched layer is a mixture of candidate operations, weighted by a softmax over its architecture logits. All
operations of a layer are one matrix product. Shrinking keeps the operations with the largest logits; the others leave
the computation and receive no gradient, and their logits become minus infinity. :meth:`PrefixNAS.derive` drops their
parameters too and leaves the small network, :meth:`PrefixNAS.collapse` gives its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlbench.nn.prefixes.inject import PrefixShape, StaticPrefix

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
}
DROPOUTS = (0.1, 0.3, 0.5)
LOGIT_STD = 1e-3
OUTPUT_STD = 0.02


class PrefixOperation(NamedTuple):
    """A candidate: linear, activation, dropout, layer norm without affine parameters."""

    activation: str
    dropout: float

    @property
    def name(self) -> str:
        """Such as ``gelu-drop0.3``."""
        return f"{self.activation}-drop{self.dropout}"


PREFIX_OPERATIONS = tuple(PrefixOperation(activation, dropout) for activation in ACTIVATIONS for dropout in DROPOUTS)


class SearchedLayer(nn.Module):
    """``gamma * sum_j w_j LN(dropout_j(act_j(x W_j^T + b_j))) + beta`` over the surviving operations.

    Args:
        width: Of the input.
        out: Of the output.
    """

    rates: Tensor
    index: Tensor

    def __init__(self, width: int, out: int, operations: Sequence[PrefixOperation], draw: torch.Generator) -> None:
        super().__init__()
        self.operations, self.width, self.out = tuple(operations), width, out
        std = math.sqrt(2 / width)
        numbers = range(len(operations))
        self.weights = nn.ParameterDict([(str(j), torch.randn(out, width, generator=draw) * std) for j in numbers])
        self.biases = nn.ParameterDict([(str(j), torch.zeros(out)) for j in numbers])
        self.gamma, self.beta = nn.Parameter(torch.ones(out)), nn.Parameter(torch.zeros(out))
        self.register_buffer("rates", None, persistent=False)
        self.register_buffer("index", None, persistent=False)
        self.keep(range(len(operations)))

    def keep(self, survivors: Sequence[int]) -> None:
        """Compute only these operations from now on."""
        self.survivors = tuple(survivors)
        rates = [self.operations[j].dropout for j in self.survivors]
        self.rates = self.gamma.new_tensor(rates).unsqueeze(-1)
        self.index = torch.tensor(self.survivors, device=self.gamma.device)

    def drop(self) -> None:
        """Delete the parameters of the operations that are not computed any more."""
        for name in set(self.weights) - set(map(str, self.survivors)):
            del self.weights[name], self.biases[name]

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """``[length, width]`` to ``[length, out]``, mixed by ``logits [operations]``; a single survivor reads none."""
        count, width = len(self.survivors), self.out
        weight = torch.cat([self.weights[str(j)] for j in self.survivors])
        bias = torch.cat([self.biases[str(j)] for j in self.survivors])
        z = self._activate(F.linear(x, weight, bias).view(-1, count, width))
        if self.training and self.gamma.requires_grad:  # frozen, it is one fixed function
            z = z * (torch.rand_like(z) >= self.rates) / (1 - self.rates)
        z = F.layer_norm(z, (width,))
        mixed = z[:, 0] if count == 1 else self.mixture(logits) @ z
        return self.gamma * mixed + self.beta

    def mixture(self, logits: Tensor) -> Tensor:
        """Weights of the survivors ``[survivors]``."""
        return torch.softmax(logits.index_select(0, self.index), dim=0)

    def _activate(self, z: Tensor) -> Tensor:
        runs = [(name, len(list(run))) for name, run in groupby(self.operations[j].activation for j in self.survivors)]
        parts = torch.split(z, [size for _, size in runs], dim=1)
        return torch.cat([ACTIVATIONS[name](part) for (name, _), part in zip(runs, parts, strict=True)], dim=1)


class PrefixNAS(nn.Module):
    """The prefix encoder: an embedding, searched layers, an output layer; float32 also under autocast.

    Args:
        shape: What one prefix token holds.
        length: Prefix tokens.
        width: Width of the embedding and of every searched layer.
        layers: Searched layers; 0 is an embedding and an output layer (PreEmbedd).
        draw: Makes the initial values: embedding N(0, 1), linears Kaiming normal for ReLU, output N(0, 0.02^2), logits
            N(0, 0.001^2), biases 0.
        operations: Candidates of every layer.
        repeat: Every layer is the first one, with its weights and logits.
        skip: A layer that keeps the width adds its input to its output.
        reduction: The layer in the middle halves the width.
    """

    def __init__(
        self,
        *,
        shape: PrefixShape,
        length: int,
        width: int,
        layers: int,
        draw: torch.Generator,
        operations: Sequence[PrefixOperation] = PREFIX_OPERATIONS,
        repeat: bool = False,
        skip: bool = False,
        reduction: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.length, self.width, self.operations = shape, length, width, tuple(operations)
        self.depth, self.skip = layers, skip
        numbers = shape.layers * 2 * shape.kv_heads * shape.head_dim
        distinct = min(1, layers) if repeat else layers
        widths = [width // 2 if reduction and at > layers // 2 else width for at in range(layers + 1)]
        self.embedding = nn.Parameter(torch.randn(length, width, generator=draw))
        self.layers = nn.ModuleList(
            SearchedLayer(widths[at], widths[at + 1], operations, draw) for at in range(distinct)
        )
        self.output = nn.Parameter(torch.randn(numbers, widths[-1], generator=draw) * OUTPUT_STD)
        self.output_bias = nn.Parameter(torch.zeros(numbers))
        self.alpha = nn.Parameter(torch.randn(distinct, len(operations), generator=draw) * LOGIT_STD)
        """Architecture logits ``[layers, operations]``; minus infinity for an operation that was dropped."""
        self.alpha_open = False
        """Whether the logits are in the autograd graph; elsewhere they are constants and receive no gradient."""
        self.entropy_weight = 0.0
        self.trajectory: list[dict[str, Any]] = []
        self._searched_parameters = sum(p.numel() for p in self.parameters())

    @property
    def size(self) -> int:
        """Operations left per layer."""
        return max((len(layer.survivors) for layer in self._searched()), default=1)

    def forward(self) -> Tensor:
        """The prefix ``[layers, 2, kv_heads, length, head_dim]`` of the backbone's layers."""
        with torch.autocast(self.embedding.device.type, enabled=False):
            x, alpha, searched = self.embedding, self._logits(), self._searched()
            for at in range(self.depth):
                y = searched[at % len(searched)](x, alpha[at % len(searched)])
                x = x + y if self.skip and x.shape == y.shape else y
            flat = F.linear(x, self.output, self.output_bias)
        layers, heads, size = self.shape
        return flat.view(self.length, layers, 2, heads, size).permute(1, 2, 3, 0, 4)

    def entropy(self) -> Tensor:
        """Mean over layers of the mixture's entropy by that of the uniform one: in [0, 1], 0 for a single operation."""
        alpha = self._logits()
        terms = [
            torch.special.entr(layer.mixture(logits)).sum() / math.log(len(layer.survivors))
            for layer, logits in zip(self._searched(), alpha, strict=True)
            if len(layer.survivors) > 1
        ]
        return torch.stack(terms).sum() / len(self.layers) if terms else self.alpha.new_zeros(())

    def penalty(self) -> Tensor | None:
        """``entropy_weight * entropy()`` where it has a gradient, otherwise ``None``."""
        return self.entropy_weight * self.entropy() if self.alpha_open else None

    @torch.no_grad()
    def cut(self, keep: int, *, step: int | None = None) -> None:
        """Keep the ``keep`` operations with the largest logits in every layer; equal logits keep the lower index.

        The mixture before the cut is added to the trajectory. Reads the logits on the host.
        """
        self._remember(step=step, keep=keep)
        for layer, logits in zip(self._searched(), self.alpha, strict=True):
            values = logits.tolist()
            ranked = sorted(layer.survivors, key=lambda j: (-values[j], j))
            layer.keep(sorted(ranked[:keep]))
            dropped = torch.ones_like(logits, dtype=torch.bool).index_fill_(0, layer.index, False)
            logits.masked_fill_(dropped, -torch.inf)
            for j in ranked[keep:]:
                layer.weights[str(j)].grad = layer.biases[str(j)].grad = None

    def search_state(self) -> dict[str, Any]:
        """What the search changed besides parameters."""
        return {"survivors": [list(layer.survivors) for layer in self._searched()], "trajectory": list(self.trajectory)}

    def load_search_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`search_state` gave."""
        for layer, survivors in zip(self._searched(), state["survivors"], strict=True):
            layer.keep(survivors)
        self.trajectory = list(state["trajectory"])

    def derive(self, *, step: int | None = None) -> None:
        """Keep one operation per layer (eq. 7), unless that is done, and drop the parameters of the others."""
        if self.size > 1:
            self.cut(1, step=step)
        for layer in self._searched():
            layer.drop()

    def fix(self, names: Sequence[str]) -> None:
        """Give every layer one operation by name from the start, so that nothing is searched.

        Args:
            names: One for each searched layer, such as ``gelu-drop0.3``; they are among the candidates.
        """
        known = {operation.name: j for j, operation in enumerate(self.operations)}
        for layer, name in zip(self._searched(), names, strict=True):
            layer.keep([known[name]])
            layer.drop()

    def shrink_to(self, names: Collection[str]) -> None:
        """Drop the operations whose parameters are not among ``names``: an encoder ready to load a derived one."""
        for at, layer in enumerate(self._searched()):
            layer.keep([j for j in layer.survivors if f"layers.{at}.weights.{j}" in names])
            layer.drop()

    @torch.no_grad()
    def collapse(self) -> Tensor:
        """The prefix as a constant: what :meth:`forward` gives in evaluation mode."""
        training = self.training
        kv: Tensor = self.eval()().contiguous()
        self.train(training)
        return kv

    def static(self) -> StaticPrefix:
        """The prefix as a constant, with these notes."""
        return StaticPrefix(self.collapse(), self.notes())

    def encoders(self) -> list[PrefixNAS]:
        """What searches: itself."""
        return [self]

    def architecture(self) -> list[list[str]]:
        """Names of the operations left in every layer."""
        return [[self.operations[j].name for j in layer.survivors] for layer in self._searched()]

    def derived_parameters(self) -> int:
        """Parameters of the network that the search leaves, its architecture logits not counted."""
        fixed = self.embedding.numel() + self.output.numel() + self.output_bias.numel()
        return fixed + sum(layer.width * layer.out + 3 * layer.out for layer in self._searched())

    def temporary_parameters(self) -> int:
        """Parameters that the search drops."""
        return self._searched_parameters - self.alpha.numel() - self.derived_parameters()

    def notes(self) -> dict[str, Any]:
        """The architecture found, the mixtures at every cut, and the number of parameters before and after."""
        derived = self.derived_parameters()
        return {
            "prefix_nas": {
                "architecture": self.architecture(),
                "trajectory": list(self.trajectory),
                "searched_parameters": self._searched_parameters,
                "derived_parameters": derived,
                "static_numbers": self.length * self.output.shape[0],
            }
        }

    def _searched(self) -> list[SearchedLayer]:
        return [layer for layer in self.layers if isinstance(layer, SearchedLayer)]

    def _logits(self) -> Tensor:
        return self.alpha if self.alpha_open else self.alpha.detach()

    def _remember(self, *, step: int | None, keep: int) -> None:
        mixtures = [
            {self.operations[j].name: round(w, 6) for j, w in zip(layer.survivors, weights, strict=True)}
            for layer, weights in zip(
                self._searched(),
                (layer.mixture(row).tolist() for layer, row in zip(self._searched(), self.alpha, strict=True)),
                strict=True,
            )
        ]
        entropy = round(self.entropy().item(), 6)
        self.trajectory.append({"step": step, "keep": keep, "entropy": entropy, "mixtures": mixtures})

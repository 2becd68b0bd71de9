"""Full fine-tuning: every weight of the backbone is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, hookimpl, nn

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class WeightDtypes:
    """Types that the trained weights had in the backbone, by name; kept with the model."""

    by_name: Mapping[str, torch.dtype]


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """All weights, norms and biases included, trained as float32 copies; the backbone itself is not touched.

    Where the backbone is bfloat16, training computes in bfloat16 by autocast over the float32 copies, and the result
    is rounded to the dtypes of the backbone before evaluation, as a merged adapter is. The adapter saved is the whole
    model. Weight decay acts on matrices only.
    """

    name: ClassVar[str] = "full"
    source: ClassVar[str] = "fine-tuning of all weights with AdamW, as in Raffel et al. 2020, arXiv:1910.10683"
    composable: ClassVar[bool] = False
    supports_quantized: ClassVar[bool] = False

    learning_rate: float | None = 1e-4
    """Not the protocol's, which is for adapters that start at zero: a step of AdamW moves every weight by about the
    rate, and 1e-3 is several percent of a pretrained weight of typical size 0.02. Small backbones bear more."""
    embeddings: bool = True
    """Train the token embeddings and the output head too."""

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        kept = set() if self.embeddings else _embeddings(model)
        copies: dict[Tensor, torch.nn.Parameter] = {}
        dtypes: dict[str, torch.dtype] = {}
        for prefix, module in model.named_modules():
            for name, p in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if p not in copies:  # a tied weight stays one parameter
                    wide = p.detach().to(torch.float32, copy=p not in kept)
                    copies[p] = torch.nn.Parameter(wide, requires_grad=p not in kept)
                    dtypes[f"{prefix}.{name}".lstrip(".")] = p.dtype
                setattr(module, name, copies[p])
        nn.attach_state(model, WeightDtypes(dtypes))

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.dim() > 1]
        others = [p for p in trained if p.dim() <= 1]
        return [{"params": matrices, "lr": learning_rate}, {"params": others, "lr": learning_rate, "weight_decay": 0.0}]

    def finish(self, model: torch.nn.Module) -> None:
        """Round the weights to the dtypes of the backbone."""
        for name, dtype in nn.get_state(model, WeightDtypes).by_name.items():
            p = model.get_parameter(name)
            p.data = p.data.to(dtype)


def _embeddings(model: Any) -> set[Tensor]:
    """Weights of the token embeddings and of the output head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {p for end in ends if end is not None for p in end.parameters()}


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Full]

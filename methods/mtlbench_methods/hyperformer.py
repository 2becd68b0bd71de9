"""HyperFormer: adapters behind attention and feed-forward blocks, made by a network from task, layer and block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mtlbench import Method, Setup, Value, hookimpl, nn
from mtlbench.errors import RequestError
from mtlbench_methods.settings import backbone_width, check

if TYPE_CHECKING:
    import torch

EMBEDDINGS = ("tasks", "layers", "blocks")
"""By the last part of their names."""


@dataclass(frozen=True, kw_only=True)
class Hyperformer(Method):
    """``x + LN_gen(U gelu(D x + b_D) + b_U)`` on the output ``x`` of each self-attention and feed-forward block.

    ``D``, ``U``, their biases and the norm's scale and shift are linear maps of ``I``, a projection of the embeddings
    of task and layer. Encoder and decoder have a network each and share the task embeddings. Self-attention and
    feed-forward blocks have linear maps of their own; in ``hyperformer_pp`` they share them, and an embedding of the
    block goes into ``I`` too. The backbone's layer norms train along.

    The paper's text has a network for each layer; its code and configurations have this one, which is followed. Its
    training draws every batch from one task, with temperature 10; here batches mix tasks, and the protocol's
    ``mixing=temperature:10`` gives each task its share. Label smoothing is left out.
    """

    name: ClassVar[str] = "hyperformer"
    source: ClassVar[str] = (
        "Karimi Mahabadi et al. 2021, arXiv:2106.04489; rabeehk/hyperformer@56b0f99:hyperformer/adapters"
    )
    task_routed: ClassVar[bool] = True
    identity_at_start: ClassVar[bool] = False
    """What it generates is small at the start, not zero."""
    size_field: ClassVar[str] = "reduction"
    shared: ClassVar[bool] = False
    """One set of linear maps for both blocks."""

    learning_rate: float | None = 3e-4
    reduction: int = 32
    """The bottleneck is the backbone's width divided by it."""
    task_width: int = 64
    """Width of the embeddings of tasks, layers and blocks."""
    hidden: int = 128
    """Of the projection."""
    projected: int = 64
    """Width of ``I``."""
    norms: bool = True
    """Train the backbone's layer norms too."""

    def __post_init__(self) -> None:
        for name in ("reduction", "task_width", "hidden", "projected"):
            check(self, name, holds=getattr(self, name) >= 1, allowed="a whole number of at least 1")

    def sized(self, size: int, setup: Setup) -> Mapping[str, Value]:
        """``size`` is the bottleneck, as far as whole reductions reach it."""
        return {"reduction": max(1, backbone_width(setup) // size)}

    def attach(self, model: torch.nn.Module, setup: Setup) -> None:
        import torch

        places = nn.find_sublayers(setup.target_modules, model)
        width = nn.block_width(model, places)
        if self.reduction > width:
            raise RequestError(
                f"{self.name}[reduction={self.reduction}]: the backbone is {width} wide, which leaves no bottleneck. "
                f"Take at most {width}."
            )
        stacks = {
            stack: nn.StackHypernet(
                layers=1 + max(place.layer for place in places if place.stack == stack),
                width=width,
                bottleneck=width // self.reduction,
                task_width=self.task_width,
                hidden=self.hidden,
                projected=self.projected,
                shared=self.shared,
                draw=nn.seeded_generator(setup.seed, f"hypernet/{stack}"),
            )
            for stack in dict.fromkeys(place.stack for place in places)
        }
        draw = nn.seeded_generator(setup.seed, "hypernet/tasks")
        hypernet = nn.Hypernet(torch.randn(len(setup.tasks), self.task_width, generator=draw), stacks)
        nn.attach_module(model, "mtlbench_hypernet", hypernet.to(next(model.parameters()).device))
        nn.insert_after(
            model,
            places,
            lambda place, _: nn.GeneratedAdapter(hypernet, place.stack, place.layer, place.block),
            setup.routing,
        )
        if self.norms:
            nn.unfreeze_norms(model)

    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Embeddings, biases and norms have no weight decay."""
        named = [(name.rpartition(".")[2], p) for name, p in model.named_parameters() if p.requires_grad]
        decayed = [p for name, p in named if p.dim() > 1 and name not in EMBEDDINGS]
        others = [p for name, p in named if p.dim() == 1 or name in EMBEDDINGS]
        return [{"params": decayed, "lr": learning_rate}, {"params": others, "lr": learning_rate, "weight_decay": 0.0}]

    def finish(self, model: torch.nn.Module) -> None:
        """Make the adapters of all tasks once and drop the network; round the norms as the backbone's are."""
        for module in model.modules():
            if isinstance(module, nn.AfterLinear | nn.AfterBlock) and isinstance(module.after, nn.GeneratedAdapter):
                module.after = module.after.static()
        nn.remove_module(model, nn.Hypernet)
        nn.restore_norm_dtypes(model)

    def switch(self, model: torch.nn.Module, *, on: bool) -> None:
        """Without its adapters the model is the stock one."""
        nn.get_module(model, nn.Hypernet).on = on


@dataclass(frozen=True, kw_only=True)
class HyperformerPlusPlus(Hyperformer):
    """HyperFormer++: one set of linear maps for all blocks of a stack, told apart by an embedding."""

    name: ClassVar[str] = "hyperformer_pp"
    shared: ClassVar[bool] = True


@hookimpl
def mtlbench_methods() -> list[type[Method]]:
    return [Hyperformer, HyperformerPlusPlus]

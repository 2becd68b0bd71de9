"""The one low-rank layer that every method of the LoRA family maps its parameters onto.

A method gives a pure function from its own parameters to :class:`~mtlbench.nn.low_rank.fused.Factors`; nothing else
differs between the methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.api.routing import Routing
from mtlbench.backbones.quantized import is_quantized
from mtlbench.compat import parameters_of, version_of
from mtlbench.distributed.shards_fit import is_shard
from mtlbench.errors import RequestError
from mtlbench.nn.layer_rows import in_rows
from mtlbench.nn.linears import replace_module
from mtlbench.nn.low_rank.fused import Factors, LowRankBranch, fused_low_rank
from mtlbench.nn.low_rank.merging import merge_layers
from mtlbench.nn.low_rank.siblings import GatedBlock, SharedInput, gated_blocks, siblings
from mtlbench.nn.row_sums import collects, report

__all__ = [
    "BatchRows",
    "Factors",
    "FactorsFunction",
    "LowRankLinear",
    "MergedLinear",
    "adapt",
    "merge_low_rank",
]


@dataclass(frozen=True)
class BatchRows:
    """The rows in flight, as one layer sees them."""

    routing: Routing | None
    training: bool
    count: int
    """Rows of the layer's input."""
    input: Tensor | None = None
    """The layer's input ``[rows, length, in]`` without dropout, where the layer was made with ``reads_input``."""

    @property
    def reports(self) -> bool:
        """Whether the factors' ``report`` is read: not in evaluation."""
        return collects()

    @property
    def tasks(self) -> Tensor:
        """Task ids ``[rows]``.

        Raises:
            RuntimeError: the layer has no routing, or runs outside it.
        """
        if self.routing is None:
            raise RuntimeError("factors that depend on the task need a routing")
        return self.routing.ids(self.count)

    @property
    def x(self) -> Tensor:
        """``input``.

        Raises:
            RuntimeError: the layer was not made with ``reads_input``.
        """
        if self.input is None:
            raise RuntimeError("factors that depend on the input need a layer made with reads_input=True")
        return self.input


FactorsFunction = Callable[[Mapping[str, Tensor], BatchRows], Factors]


class LowRankLinear(nn.Module):
    """A frozen linear with a trainable low-rank part in float32.

    Attributes of the wrapped linear that models read (``weight``, ``bias``, ``in_features``, ``out_features``) are
    those of ``base``.

    Args:
        base: The frozen linear.
        parameters: Initial values of the trainable parameters by name.
        factors: Pure function of those parameters and the rows in flight.
        routing: Needed when the factors depend on the task.
        dropout: On the input of the low-rank path, in training mode only.
        reads_input: Whether the factors depend on the input, as token routing does.
    """

    def __init__(
        self,
        base: nn.Linear,
        parameters: Mapping[str, Tensor],
        factors: FactorsFunction,
        *,
        routing: Routing | None = None,
        dropout: float = 0.0,
        reads_input: bool = False,
    ) -> None:
        super().__init__()
        self.base = base
        self.factors_of = factors
        self.routing = routing
        self.dropout = dropout
        self.reads_input = reads_input
        self.name = ""
        """Of the linear, under which it reports; :func:`adapt` gives it."""
        self.shared: SharedInput | None = None
        self.known: KnownFactors | None = None
        self.in_features, self.out_features = base.in_features, base.out_features
        self.quantized = is_quantized(base)
        for name, value in parameters.items():
            parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value.to(base.weight.device))
            self.register_parameter(name, parameter)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def dtype(self) -> torch.dtype:
        """That of the frozen weight; of a quantised one, that of the factors."""
        if not self.quantized:
            return self.base.weight.dtype
        return next(p.dtype for p in self.parameters(recurse=False))

    @property
    def rate(self) -> float:
        """Dropout in the present mode; a frozen layer is one fixed function."""
        return self.dropout if self.training and any(p.requires_grad for p in self.parameters(recurse=False)) else 0.0

    def branch(self, x: Tensor) -> LowRankBranch:
        """The frozen linear and the factors for the rows ``x``."""
        if self.known is not None:
            factors = self.known.of(x, self)
        else:
            rows = BatchRows(self.routing, self.training, x.shape[0], x if self.reads_input else None)
            factors = self.factors(rows)
            if factors.report is not None:
                report(self.name, factors.report, shape=(x.shape[0], x.shape[1]))
        if self.quantized:
            return LowRankBranch(None, None, factors, product=self.base)
        return LowRankBranch(self.base.weight, self.base.bias, factors)

    def stamp(self) -> tuple[Any, ...]:
        """Changes when an output computed before would be out of date."""
        turn = None if self.routing is None else self.routing.turn
        return (self.training, turn, *(version_of(p) for p in parameters_of(self).values() if p is not None))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3:
            return in_rows(self, x, self.forward)
        if self.shared is not None:
            return self.shared.output(self, x)
        return fused_low_rank(x, [self.branch(x)], dropout=self.rate)[0]

    def gated(self, activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
        """The same on ``activation(gate) * up``, which is not kept for the backward. Not with ``reads_input``."""
        return fused_low_rank(up, [self.branch(up)], dropout=self.rate, gated=(activation, gate))[0]

    @torch.no_grad()
    def folded(self, task: int | None = None) -> Factors:
        """``down [rank, in]`` and ``up [out, rank]`` alone, with everything between them multiplied into ``up``.

        Args:
            task: Needed when the factors depend on the task.

        Raises:
            ValueError: when they do and no task is given, or they depend on the token.
        """
        device = self.base.weight.device
        x = torch.zeros(1, 2, self.in_features, device=device) if self.reads_input else None
        one = None if task is None else Routing()
        try:
            with nullcontext() if one is None else one.of(torch.tensor([task], device=device)):
                found = self.factors(BatchRows(one, training=False, count=1, input=x))
        except RuntimeError as error:
            if task is not None:
                raise
            raise ValueError("the low-rank part depends on the task: choose the task to fold it for") from error
        down, up = (factor if factor.dim() == 2 else factor[0] for factor in (found.down, found.whole_up()))
        if found.gate is not None:
            if found.gate.shape[1] != 1:
                raise ValueError("the low-rank part depends on the token and cannot be folded")
            up = up * found.gate[0]
        if found.matrix is not None:
            up = up @ found.matrix[0]
        return Factors(down.clone(), up.clone(), scale=found.scale)

    def factors(self, rows: BatchRows) -> Factors:
        """What the present parameters amount to for ``rows``."""
        return self.factors_of({name: p for name, p in parameters_of(self).items() if p is not None}, rows)

    def merged(self, task: int | None = None) -> MergedLinear:
        """The same function as a plain linear with a new weight, for one task where it depends on the task.

        Raises:
            ValueError: as :meth:`folded`.
        """
        return MergedLinear(self.base, self.folded(task))


class MergedLinear(nn.Linear):
    """A linear into which a low-rank part was merged. ``factors`` keeps what was merged; it is no part of the state."""

    @torch.no_grad()
    def __init__(self, base: nn.Linear, factors: Factors) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        wide = base.weight.to(torch.promote_types(base.weight.dtype, torch.float32))
        weight = torch.addmm(wide, factors.up.to(wide.dtype), factors.down.to(wide.dtype), alpha=factors.scale)
        self.weight = nn.Parameter(weight.to(base.weight.dtype), requires_grad=False)
        if base.bias is not None:
            self.bias = nn.Parameter(base.bias.detach(), requires_grad=False)
        self.factors = factors


WRITES_IN_PLACE = frozenset({"falcon"})
"""Types whose blocks add to the output of a linear in place, so that a layer may not keep its output for backward."""


def adapt(model: nn.Module, names: Iterable[str], make: Callable[[str, nn.Linear], nn.Module]) -> None:
    """Put ``make(name, linear)`` in the place of every named linear.

    Low-rank linears that share their input then compute together, and gated feed-forward blocks that hold an adapted
    linear keep less for the backward.

    Raises:
        RequestError: what a name stands for is no plain linear, because it was adapted before or is of another kind.
    """
    made: dict[str, nn.Module] = {}
    for name in names:
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise RequestError(f"{name} is a {type(linear).__name__}, not a linear that can be adapted.")
        made[name] = make(name, linear)
        if hasattr(made[name], "overwritten"):
            written = getattr(getattr(model, "config", None), "model_type", "") in WRITES_IN_PLACE
            setattr(made[name], "overwritten", written)  # noqa: B010
        replace_module(model, name, made[name])
    low = {name: module for name, module in made.items() if isinstance(module, LowRankLinear)}
    for name, module in low.items():
        module.name = name
    for group in siblings(low):
        shared = SharedInput([low[name] for name in group])
        for name in group:
            low[name].shared = shared
    for name in gated_blocks(model, made):
        replace_module(model, name, GatedBlock(model.get_submodule(name)))


def merge_low_rank(model: nn.Module, task: int | None = None) -> None:
    """Put a plain linear in the place of every :class:`LowRankLinear`, for one task where they depend on the task.

    Those over a sharded or a quantised weight stay as they are.

    Raises:
        ValueError: when they do and no task is given, or they depend on the token.
    """
    # A sharded weight stays as it is: what is merged into it would be whole on every device. So does a quantised one:
    # rounding the sum again would change the function that was trained.
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, LowRankLinear) and not is_shard(module.base.weight) and not module.quantized
    ]
    merge_layers(model, layers, lambda layer: layer.merged(task))


FOLD_FROM = 4
"""Tokens of a row from which an up-projection of its own costs less than a matrix before the shared one."""
KEPT_SHARE = 2
"""The factors kept for all tasks of one linear have at most its weight's elements divided by this."""


@dataclass(frozen=True)
class KnownFactors:
    """The factors of one linear for every task.

    Attributes:
        all: With one row for each task wherever they differ by row.
        folded: ``up`` with the matrix multiplied into it, ``[tasks, rank, out]``, where that is narrower.
    """

    all: Factors
    folded: Tensor | None

    def of(self, x: Tensor, layer: LowRankLinear) -> Factors:
        """Those of the rows ``x [rows, length, in]``."""
        f = self.all
        if not _differing(f) and self.folded is None:
            return f
        if layer.routing is None:
            raise RuntimeError("factors that differ by row need a routing")
        tasks = layer.routing.ids(x.shape[0])
        if self.folded is not None and x.shape[1] >= FOLD_FROM:
            own = self.folded.index_select(0, tasks).transpose(1, 2)
            down = f.down if f.down.dim() == 2 else f.down.index_select(0, tasks)
            return Factors(down, own, scale=f.scale)
        rows: dict[str, Any] = {name: factor.index_select(0, tasks) for name, factor in _differing(f).items()}
        return dataclasses.replace(f, **rows)


@contextmanager
def known_factors(model: nn.Module, *, tasks: int) -> Iterator[None]:
    """Inside, the low-rank linears of ``model`` take the factors of the task ids below ``tasks`` as computed now.

    For a model in evaluation mode whose parameters stay as they are, without gradients. Linears whose factors depend on
    the input, or would take too much memory for all tasks, compute them as ever.
    """
    changed: list[LowRankLinear] = []
    try:
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, LowRankLinear) and not module.reads_input and not module.training:
                    module.known = _known(module, tasks=tasks)
                    changed.append(module)
        yield
    finally:
        for module in changed:
            module.known = None


def _known(layer: LowRankLinear, *, tasks: int) -> KnownFactors | None:
    ids = torch.arange(tasks, device=layer.weight.device)
    with nullcontext() if layer.routing is None else layer.routing.of(ids):
        found = layer.factors(BatchRows(layer.routing, training=False, count=tasks))
    up = found.whole_up()
    folded: Tensor | None = None
    if found.matrix is not None and found.matrix.shape[1] > found.matrix.shape[2]:
        folded = (up @ found.matrix).transpose(1, 2).to(layer.dtype).contiguous()
    ready: dict[str, Any] = {name: factor.to(layer.dtype) for name, factor in _tensors(found, up).items()}
    known = KnownFactors(Factors(**ready, scale=found.scale), folded)
    kept = [*_differing(known.all).values(), *([] if folded is None else [folded])]
    most = layer.in_features * layer.out_features // KEPT_SHARE
    return known if sum(factor.numel() for factor in kept) <= most else None


def _tensors(f: Factors, up: Tensor) -> dict[str, Tensor]:
    known = {"down": f.down, "up": up, "gate": f.gate, "matrix": f.matrix}
    return {name: factor for name, factor in known.items() if factor is not None}


def _differing(f: Factors) -> dict[str, Tensor]:
    """The factors that have one row for each task."""
    tensors = _tensors(f, f.up).items()
    return {name: factor for name, factor in tensors if factor.dim() == 3 and not (name == "gate" and len(factor) == 1)}

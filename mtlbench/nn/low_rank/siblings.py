"""Low-rank linears that read the same input compute together; gated feed-forward blocks keep less for the backward.

Both give the same numbers as the layers one by one. Which modules they apply to is known by name; any other module
works one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mtlbench.compat import version_of
from mtlbench.nn.low_rank.fused import LowRankBranch, fused_low_rank, gated_product

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), ("gate_proj", "up_proj"), ("wi_0", "wi_1"))
_CROSS = ("EncDecAttention", "encoder_attn", "cross_attn")
"""Attention whose queries read another input than its keys and values."""

_LLAMA_LIKE = ("gate_proj", "up_proj", "down_proj", "act_fn", None)
_T5_LIKE = ("wi_0", "wi_1", "wo", "act", "dropout")
_LLAMAS = "Llama Mistral Ministral Qwen2 Qwen3 Gemma Gemma2 Gemma3 Granite Olmo2 Olmo3 SmolLM3"
_GATED: Mapping[str, tuple[str, str, str, str, str | None]] = {
    **{f"{family}MLP": _LLAMA_LIKE for family in _LLAMAS.split()},
    **{f"{family}DenseGatedActDense": _T5_LIKE for family in ("T5", "MT5", "UMT5")},
}
"""Class of a block that computes ``down(act(gate(x)) * up(x))`` to the names of its parts, the last its dropout."""


_PLAIN: Mapping[str, tuple[str, None, str, str, str | None]] = {
    "PhiMLP": ("fc1", None, "fc2", "activation_fn", None),
    **{f"{family}DenseActDense": ("wi", None, "wo", "act", "dropout") for family in ("T5", "MT5", "UMT5")},
}
"""The same of blocks that compute ``down(act(gate(x)))``."""


class BlockParts(NamedTuple):
    """Names of the parts of a feed-forward block ``down(act(gate(x)) * up(x))``, or without ``up``."""

    gate: str
    up: str | None
    down: str
    activation: str
    dropout: str | None


def block_parts(block: nn.Module) -> BlockParts | None:
    """The parts of ``block``, or ``None`` where it is no feed-forward block that is known by its class."""
    kind = type(block).__name__
    names = _GATED.get(kind) or _PLAIN.get(kind)
    return None if names is None else BlockParts(*names)


class Member(Protocol):
    """What a low-rank linear offers to its group."""

    training: bool
    reads_input: bool

    @property
    def rate(self) -> float: ...
    def branch(self, x: Tensor) -> LowRankBranch: ...
    def stamp(self) -> tuple[Any, ...]: ...


class SharedInput:
    """Linears called one after another with the same input: the first call computes all, the others take theirs.

    What was computed ahead is used only for the very same input tensor and unchanged parameters, mode and routing;
    otherwise it is computed again.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self._x: Tensor | None = None
        self._ahead: dict[int, tuple[Tensor, tuple[Any, ...]]] = {}

    def output(self, member: Member, x: Tensor) -> Tensor:
        """What ``member`` gives for ``x [rows, length, in]``."""
        ready = self._ahead.pop(id(member), None)
        if ready is not None and self._x is x and ready[1] == (_writes(x), torch.is_grad_enabled(), *member.stamp()):
            if not self._ahead:
                self._x = None
            return ready[0]
        outputs = fused_low_rank(x, [m.branch(x) for m in self.members], dropout=member.rate)
        made = dict(zip(map(id, self.members), outputs, strict=True))
        own = made.pop(id(member))
        mode = (_writes(x), torch.is_grad_enabled())
        self._ahead = {id(m): (made[id(m)], (*mode, *m.stamp())) for m in self.members if m is not member}
        self._x = x
        return own

    def forget(self) -> None:
        """Let go of what was computed ahead, and of the graph behind it."""
        self._x, self._ahead = None, {}


@contextmanager
def forgotten_on_failure(model: nn.Module) -> Iterator[None]:
    """Inside, a forward pass of ``model`` that fails leaves nothing behind that was computed ahead.

    Where a norm stands between linears that share an input (Qwen3, Gemma 3, OLMo 2), memory may run out there: what the
    later ones would have taken would hold every activation so far while the step is tried again.
    """
    try:
        yield
    except BaseException:
        for module in model.modules():
            if isinstance(shared := getattr(module, "shared", None), SharedInput):
                shared.forget()
        raise


def _writes(x: Tensor) -> int:
    """How often ``x`` was written to. Tensors of inference mode do not count; no model writes to one in between."""
    return 0 if x.is_inference() else version_of(x)


class GatedBlock(nn.Module):
    """In the place of a gated feed-forward block: its parts by their names, its product computed again in backward."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        gate, up, down, activation, dropout = _GATED[type(block).__name__]
        self._names = (gate, up, down)
        for name, part in block.named_children():
            self.add_module(name, part)
        self._activation: Callable[[Tensor], Tensor] = getattr(block, activation)
        self._dropout = dropout
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (getattr(self, name) for name in self._names)
        opened, wide = gate(x), up(x)
        dropout = 0.0 if self._dropout is None or not self.training else getattr(self, self._dropout).p
        if dropout or not hasattr(down, "gated") or down.reads_input:
            given = nn.functional.dropout(gated_product(self._activation, opened, wide), dropout)
            # T5 may keep this one linear in float32
            kept = self._dropout is None or not down.weight.is_floating_point()
            y: Tensor = down(given if kept else given.to(down.weight.dtype))
            return y
        y = down.gated(self._activation, opened, wide)
        return y


def siblings(names: Iterable[str]) -> list[list[str]]:
    """Groups of at least two of the names whose modules read the same input."""
    known = set(names)
    groups = []
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in known):
        for together in _TOGETHER:
            wanted = together[1:] if parent.endswith(_CROSS) and together[0].startswith("q") else together
            group = [f"{parent}.{last}" for last in wanted if f"{parent}.{last}" in known]
            if len(group) > 1:
                groups.append(group)
    return groups


def gated_blocks(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Names of the gated blocks that hold one of ``names``."""
    parents = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return [parent for parent in parents if type(model.get_submodule(parent)).__name__ in _GATED]

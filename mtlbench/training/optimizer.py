"""AdamW by torch's fused kernel. torch.optim costs 1.6 s on first use because it imports the compiler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class AdamW:
    """AdamW with decoupled weight decay, equal to ``torch.optim.AdamW`` (Loshchilov and Hutter 2019, algorithm 2).

    Args:
        groups: Dictionaries with ``params`` and optionally ``lr``, ``weight_decay`` and ``betas``.

    Raises:
        ValueError: when a parameter is in two groups.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": betas}
        self.groups = [{**defaults, **group, "params": list(group["params"])} for group in groups]
        self.eps = eps
        self.params: list[Tensor] = [p for group in self.groups for p in group["params"]]
        if len({id(p) for p in self.params}) < len(self.params):
            raise ValueError("a parameter is in two optimizer groups")
        self._state: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self._steps: dict[Tensor, int] = {}

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """One update with every learning rate times ``factor``. Parameters without a gradient are left alone."""
        for group in self.groups:
            kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    kinds.setdefault((p.device, p.dtype), []).append(p)
            for params in kinds.values():
                self._update(params, group, group["lr"] * factor)

    def _update(self, params: list[Tensor], group: dict[str, Any], lr: float) -> None:
        for p in params:
            if p not in self._state:
                self._state[p] = (torch.zeros_like(p), torch.zeros_like(p))
            self._steps[p] = self._steps.get(p, 0) + 1
        first, second = (list(state) for state in zip(*(self._state[p] for p in params), strict=True))
        # Filled on the device, so that nothing waits; parameters that were updated as often share a count.
        counts = {t: torch.full((), float(t), device=params[0].device) for t in {self._steps[p] for p in params}}
        torch._fused_adamw_(
            params,
            [_as_laid_out(p) for p in params],
            first,
            second,
            [],
            [counts[self._steps[p]] for p in params],
            lr=lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts in the order of the parameters."""
        return {
            "moments": [self._state.get(p) for p in self.params],
            "steps": [self._steps.get(p, 0) for p in self.params],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave for the same parameters."""
        for p, moments, steps in zip(self.params, state["moments"], state["steps"], strict=True):
            if moments is not None:
                first, second = (torch.empty_like(p).copy_(moment) for moment in moments)
                self._state[p] = (first, second)
                self._steps[p] = steps


def _as_laid_out(p: Tensor) -> Tensor:
    """The gradient in the memory layout of its parameter: the kernel goes through both as they lie."""
    grad = p.grad
    assert grad is not None
    return grad if grad.stride() == p.stride() else torch.empty_like(p).copy_(grad)


@torch.no_grad()
def clip_gradients(params: Sequence[Tensor], largest: float) -> Tensor | None:
    """Scale all gradients so that their joint norm is at most ``largest``; the norm before, on the device."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return None
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


def schedule_factor(step: int, *, total: int, warmup: float, schedule: str) -> float:
    """Factor on the learning rate at ``step`` (from 0): a linear rise over ``warmup * total`` steps, then ``schedule``.

    ``cosine`` and ``linear`` fall to zero at ``total``; ``constant`` stays at one.
    """
    rise = int(warmup * total)
    if step < rise:
        return (step + 1) / (rise + 1)
    done = (step - rise) / max(1, total - rise)
    match schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
        case "constant":
            return 1.0
    raise ValueError(f"schedule {schedule!r} is not known; known: cosine, linear, constant")

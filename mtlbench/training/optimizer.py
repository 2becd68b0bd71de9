"""Optimizers by name, and their schedule of learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD, AdamW, Optimizer

MOMENTUM = 0.9
"""Of ``sgd``."""


def make_optimizer(
    name: str, groups: Sequence[dict[str, Any]], *, learning_rate: float, weight_decay: float
) -> Optimizer:
    """The optimizer ``name`` over parameter ``groups``, which may have an ``lr`` and a ``weight_decay`` of their own.

    ``adamw`` (Loshchilov and Hutter 2019) runs as one fused kernel. ``adafactor`` (Shazeer and Stern 2018) takes the
    given learning rate as it is, without relative steps, scaling by parameter size or momentum: what prompt tuning
    (Lester et al. 2021) and T5 fine-tuning train with. ``sgd`` has a momentum of 0.9.

    Raises:
        ValueError: there is no such optimizer, or a parameter is in two groups.
    """
    defaults = {"lr": learning_rate, "weight_decay": weight_decay}
    own = [{**defaults, **group, "params": list(group["params"])} for group in groups]
    match name:
        case "adamw":
            made: Optimizer = AdamW(own, fused=True)
        case "adafactor":
            from transformers.optimization import Adafactor

            made = Adafactor(own, relative_step=False, scale_parameter=False, warmup_init=False)
        case "sgd":
            made = SGD(own, momentum=MOMENTUM)
        case _:
            raise ValueError(f"optimizer {name!r} is not known; known: adamw, adafactor, sgd")
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    return made


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of all groups, in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def take_step(optimizer: Optimizer, factor: float, scaler: GradScaler | None = None) -> None:
    """One update with every learning rate times ``factor``. Parameters without a gradient are left alone.

    Gradients that ``scaler`` scaled are unscaled; where one is not finite, nothing is updated and the scale is halved.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():
                # The fused kernel goes through both as they lie in memory.
                p.grad = torch.empty_like(p).copy_(p.grad)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def make_scaler(dtype: torch.dtype | None, device: torch.device) -> GradScaler | None:
    """Loss scaling for a forward pass in ``dtype``: dynamic for float16, as ``torch.amp`` does it; else none."""
    return GradScaler(device.type) if dtype is torch.float16 else None


def optimizer_state(optimizer: Optimizer) -> list[Any]:
    """What each parameter has between steps, in the order of :func:`parameters_of`; ``None`` before its first."""
    return [dict(optimizer.state[p]) if p in optimizer.state else None for p in parameters_of(optimizer)]


def load_optimizer_state(optimizer: Optimizer, state: Sequence[Mapping[str, Any] | None]) -> None:
    """Take over what :func:`optimizer_state` gave for the same parameters."""
    held = {at: dict(own) for at, own in enumerate(state) if own is not None}
    optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})


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

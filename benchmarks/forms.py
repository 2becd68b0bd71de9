"""Our methods in the reference forms of `tests/reference`, with our parameters moved into theirs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbones import fresh
from sides import Attached, Precision, Side
from torch import Tensor, nn

from mtlbench.nn.linears import replace_module
from mtlbench.training.batches import Batch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from reference.adalora import AdaLora, Allocator, penalty
from reference.layer import Reference
from reference.lora import Dora, Lora
from reference.moelora import MoeLora, MoLora, TaskGate
from reference.mtl_lora import MtlLora, MtlLoraGathered
from reference.multilora import MultiLora
from reference.poly import CPoly, CPolyOutputs, Poly

Tensors = Mapping[str, Tensor]
Move = Callable[[Tensors, Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Form:
    """How one method looks in its reference form."""

    title: str
    layer: Callable[..., Reference]
    move: Move
    """Our tensors of one layer, parameters or gradients, by the names of the reference form; the method's settings."""
    settings: Callable[[Any], dict[str, Any]]
    """Arguments of ``layer`` besides those of every layer."""


def forms_of(method: Any) -> list[Form]:
    """The reference forms of a method with its settings; none where there is none for them."""
    if any(getattr(method, setting, plain) != plain for setting, plain in NO_FORM.items()):
        return []
    match method.name:
        case "lora" | "rslora":
            return [Form("as in peft", Lora, _lora, _none)]
        case "dora":
            return [Form("as in peft", Dora, _dora, _none)]
        case "adalora":
            return [Form("as in peft", AdaLora, _adalora, _none)]
        case "multilora":
            return [Form("loop over modules", MultiLora, _multilora, _none)]
        case "mtl_lora":
            return [
                Form("loop over tasks", MtlLora, _mtl_lora, _temperature),
                Form("copies per row", MtlLoraGathered, _mtl_lora, _temperature),
            ]
        case "moelora":
            return [Form("loop over experts", MoeLora, _experts, _none)]
        case "molora":
            return [Form("loop over experts", MoLora if method.gate == "token" else MoeLora, _experts, _none)]
        case "poly" | "mhr":
            return [Form("mixed per row", Poly, _poly, _gumbel)]
        case "cpoly":
            by_output = method.mix == "outputs"
            title = "loop over skills" if by_output else "mixed per row"
            return [Form(title, CPolyOutputs if by_output else CPoly, _poly, _gumbel)]
    return []


NO_FORM: Mapping[str, Any] = {
    "straight_through": False,
    "l2_norm": False,
    "logit_dropout": 0,
    "shared_skill": False,
    "average_correction": False,
    "granularity": "finegrained",
    "specific_skills": 1,
    "top_k": 0,
}
"""Settings that the reference forms know at these values only."""


@dataclass(frozen=True)
class Agreement:
    """How far two sides are apart."""

    loss: float
    gradients: float
    """Norm of the difference of all gradients over their norm."""

    @property
    def largest(self) -> float:
        """The larger of both; nan where one is."""
        return float(np.maximum(self.loss, self.gradients))

    def __str__(self) -> str:
        return f"loss {self.loss:.0e}, gradients {self.gradients:.0e}"


def reference_side(ours: Attached, base: nn.Module, batch: Batch, precision: Precision, form: Form) -> Side:
    """The reference form with the parameters that ``ours`` has now."""
    model = fresh(base)
    gates: dict[int, TaskGate] = {}
    layers = []
    for name, module in adapted(ours).items():
        own = dict(module.named_parameters(recurse=False))
        moved = {key: value.detach() for key, value in form.move(own, ours.method).items()}
        more = form.settings(ours.method)
        if "gate.emb" in moved:  # one gate for all layers where ours has one parameter for all
            emb, gate = moved.pop("gate.emb"), moved.pop("gate.gate")
            more["gate"] = gates.setdefault(id(own["tasks"]), TaskGate(emb, gate))
        rate = getattr(ours.method, "dropout", 0.0)
        linear = model.get_submodule(name)
        layer = form.layer(linear, moved, scale=_scale(ours.method), routing=ours.setup.routing, dropout=rate, **more)
        replace_module(model, name, layer)
        layers.append(layer)
    trained = [p for p in model.parameters() if p.requires_grad]
    extra: dict[str, Any] = {}
    if ours.method.name == "adalora":
        extra = _allocated(ours.method, layers, total=ours.setup.total_steps)
    return Side(model, batch, ours.setup.routing, precision, groups=[{"params": trained}], **extra)


def pour(ours: Attached, peft: Side) -> None:
    """Give peft's LoRA the parameters of ours."""
    for name, module in adapted(ours).items():
        theirs = dict(peft.model.get_submodule(name).named_parameters())
        for key, value in as_peft(dict(module.named_parameters(recurse=False)), ours.method).items():
            theirs[key].data.copy_(value)


def agreement(ours: Attached, other: Side, move: Move, *, all_logits: bool) -> Agreement:
    """Loss and gradients of both sides, without anything drawn at random."""
    random = any(getattr(ours.method, name, 0) for name in ("dropout", "gumbel"))
    for side in (ours.side, other):
        side.model.train(not random)
    losses = [side.backward(all_logits=all_logits) for side in (ours.side, other)]
    difference, size = [], []
    for name, module in adapted(ours).items():
        own = {key: _gradient(p) for key, p in module.named_parameters(recurse=False)}
        theirs = dict(other.model.get_submodule(name).named_parameters())
        for key, gradient in move(own, ours.method).items():
            difference.append((gradient - _gradient(theirs[key]).view_as(gradient)).norm())
            size.append(gradient.norm())
    for side in (ours.side, other):
        side.clear()
        side.model.train()
    apart = torch.stack(difference).norm() / torch.stack(size).norm()
    return Agreement(abs(losses[0] - losses[1]).item() / abs(losses[0]).item(), apart.item())


def adapted(ours: Attached) -> dict[str, nn.Module]:
    """Our layers by the names of the linears they wrap."""
    found = {name: ours.side.model.get_submodule(name) for name in ours.setup.target_modules}
    return {name: module for name, module in found.items() if not isinstance(module, nn.Linear)}


def _gradient(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def _scale(method: Any) -> float:
    if method.name == "adalora":
        return float(method.alpha / (method.rank + 1e-5))
    return float(method.alpha / (method.rank**0.5 if getattr(method, "rslora", False) else method.rank))


def as_peft(p: Tensors, method: Any) -> dict[str, Tensor]:
    """Our LoRA by peft's names."""
    return {"lora_A.default.weight": p["down"], "lora_B.default.weight": p["up"]}


def _none(method: Any) -> dict[str, Any]:
    return {}


def _temperature(method: Any) -> dict[str, Any]:
    return {"temperature": method.temperature}


def _gumbel(method: Any) -> dict[str, Any]:
    return {"gumbel": method.gumbel}


def _lora(p: Tensors, method: Any) -> dict[str, Tensor]:
    return {"A": p["down"], "B": p["up"]}


def _dora(p: Tensors, method: Any) -> dict[str, Tensor]:
    return {"A": p["down"], "B": p["up"], "m": p["magnitude"]}


def _adalora(p: Tensors, method: Any) -> dict[str, Tensor]:
    return {"A": p["down"], "E": p["values"], "B": p["up"]}


def _multilora(p: Tensors, method: Any) -> dict[str, Tensor]:
    return {"A": p["down"], "B": p["up"].permute(1, 0, 2), "s": p["scale"].t()}


def _mtl_lora(p: Tensors, method: Any) -> dict[str, Tensor]:
    return {"A": p["down"], "Lam": p["transform"], "B": p["up"].permute(1, 0, 2), "w": p["logits"]}


def _experts(p: Tensors, method: Any) -> dict[str, Tensor]:
    down, up, experts = p["down"], p["up"], method.experts
    found = {
        "A": down.reshape(experts, -1, down.shape[1]),
        "B": up.reshape(up.shape[0], experts, -1).permute(1, 0, 2),
    }
    if "tasks" not in p:
        return {**found, "G": p["router"]}
    return {**found, "gate.emb": p["tasks"], "gate.gate": p["gate"] if "gate" in p else p["router"]}


def _poly(p: Tensors, method: Any) -> dict[str, Tensor]:
    found = {"A": p["down"].transpose(2, 3), "B": p["up"], "z": p["logits"].flatten(1)}
    return {**found, "c": p["specific"]} if "specific" in p else found


def _allocated(method: Any, layers: Sequence[Any], *, total: int) -> dict[str, Any]:
    """AdaLoRA's penalty in the loss, and its allocation after each step."""
    allocator = Allocator(
        layers,
        target_rank=method.target_rank,
        warmup=round(method.prune_from * total),
        final=total - round(method.prune_until * total),
        every=method.delta_t,
        total=total,
    )
    return {
        "objective": lambda losses: losses.mean() + method.orthogonal * penalty(layers),
        "after": lambda step: allocator.step(step + 1),
    }

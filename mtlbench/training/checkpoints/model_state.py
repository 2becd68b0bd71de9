"""What training changes in a model, and the states of the random generators it draws from."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.compat import attributes_of_every_module, version_of
from mtlbench.training.checkpoints.state import shrink, trainable_names


class Unusable(Exception):
    """A checkpoint does not fit the model or the run that it is read into."""


class ModelState:
    """Trainable parameters, and the buffers that were written to since this object was made."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._buffers = {name: (buffer, version_of(buffer)) for name, buffer in model.named_buffers()}
        self._attributes: dict[str, str] = {}
        self._alive: list[Tensor] = []

    def read(self) -> dict[str, dict[str, Tensor]]:
        """The tensors themselves, not copies."""
        return {
            "parameters": {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad},
            "buffers": {name: buffer for name, buffer in self.model.named_buffers() if self._written(name, buffer)},
        }

    @torch.no_grad()
    def write(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what :meth:`read` gave.

        Raises:
            Unusable: names or shapes differ from the model's.
        """
        wanted = state["parameters"]
        if set(trainable_names(self.model)) != set(wanted):
            shrink(self.model, wanted)
        own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if own.keys() != wanted.keys():
            raise Unusable(f"other parameters train: {sorted(own.keys() ^ wanted.keys())[0]!r}")
        buffers = dict(self.model.named_buffers())
        for tensors, saved in ((own, wanted), (buffers, state["buffers"])):
            for name, value in saved.items():
                if name not in tensors or tensors[name].shape != value.shape:
                    raise Unusable(f"{name!r} is missing or has another shape")
                tensors[name].copy_(value)

    def begin_run(self) -> None:
        """From here on :meth:`forgotten` tells what changed."""
        self._attributes = dict(_attributes(self.model))
        # held, so that no new tensor gets the identity of one of them
        self._alive = [value for module in self.model.modules() for value in vars(module).values() if _is_tensor(value)]

    def forgotten(self, kept: Collection[nn.Module]) -> str | None:
        """An attribute of a module that changed in this run and that no checkpoint holds, or ``None``.

        Seen are truth values, numbers, words, ``None``, lists and dictionaries of them, and tensors that are neither
        parameter nor buffer. ``kept`` are modules whose attributes are taken care of, with what is below them.
        """
        known = {id(inner) for module in kept for inner in module.modules()}
        names = [name for name, module in self.model.named_modules() if id(module) in known]
        for name, value in _attributes(self.model):
            owner = name.rpartition(":")[0]
            if owner not in names and self._attributes.get(name, value) != value:
                return name
        return None

    def _written(self, name: str, buffer: Tensor) -> bool:
        before = self._buffers.get(name)
        return before is None or before[0] is not buffer or before[1] != version_of(buffer)


def _attributes(model: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name == "training" or name in attributes_of_every_module():
                continue
            if _is_tensor(value):
                yield f"{path}:{name}", f"tensor {id(value)} {version_of(value)}"
                continue
            try:
                yield f"{path}:{name}", json.dumps(value)
            except (TypeError, ValueError):
                continue


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor)


def draw_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that a step draws dropout from. No device waits for it."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_draw_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what :func:`draw_states` gave."""
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of the generators of python, numpy, torch and the device."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, torch.tensor(numbers, dtype=torch.int64), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "draws": draw_states(device),
    }
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put back what :func:`random_states` gave."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    set_draw_states(states["draws"], device)

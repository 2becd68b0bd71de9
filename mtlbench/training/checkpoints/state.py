"""The trained part of a model by name, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mtlbench.errors import StoreError
from mtlbench.files.temporary import atomic_write, disk_error, sweep

FILE = "adapter.safetensors"


def trainable_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that require gradients, in model order."""
    return tuple(name for name, p in model.named_parameters() if p.requires_grad)


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter that requires gradients, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def save_adapter(model: nn.Module, folder: Path, extra: Mapping[str, Any]) -> Path:
    """Write the trainable parameters to ``folder/adapter.safetensors``, with ``extra`` as JSON in its header."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: p.detach().to("cpu").contiguous() for name, p in model.named_parameters() if p.requires_grad}
    sweep(folder)
    path = folder / FILE
    try:
        with atomic_write(path) as made:
            save_file(state, made, metadata={"mtlbench": json.dumps(dict(extra), sort_keys=True)})
    except Exception as error:
        needed = sum(tensor.nbytes for tensor in state.values())
        raise disk_error(error, path, needed=needed) or error from error
    return path


def saved_names(folder: Path) -> tuple[str, ...]:
    """Names in ``folder/adapter.safetensors``, sorted."""
    with safe_open(folder / FILE, framework="pt") as file:
        return tuple(sorted(file.keys()))


def saved_extra(folder: Path) -> dict[str, Any]:
    """The ``extra`` given to :func:`save_adapter`.

    Raises:
        StoreError: when the file is missing or unreadable.
    """
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            extra = json.loads((file.metadata() or {}).get("mtlbench", "{}"))
    except Exception as error:
        raise StoreError(f"The adapter {path} cannot be read: {error}. Train the cell again.") from error
    return dict(extra)


def replace_extra(folder: Path, extra: Mapping[str, Any]) -> None:
    """Write ``extra`` in place of what :func:`save_adapter` was given."""
    path = folder / FILE
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with atomic_write(path) as made:
        save_file(state, made, metadata={"mtlbench": json.dumps(dict(extra), sort_keys=True)})


def shrink(model: nn.Module, names: Iterable[str]) -> None:
    """Let modules that lose parameters in training (a searched architecture) take the form ``names`` were saved in.

    Such a module has a method ``shrink_to(names)``; it gets the names below it, relative to itself.
    """
    known = list(names)
    for path, module in list(model.named_modules()):
        shrink_to = getattr(module, "shrink_to", None)
        if callable(shrink_to):
            shrink_to({name.removeprefix(f"{path}.") for name in known if name.startswith(f"{path}.")})


@torch.no_grad()
def load_adapter(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Read what :func:`save_adapter` wrote into a model with the same method attached; gives ``extra`` back.

    Raises:
        StoreError: when the file is missing or unreadable, or names or shapes differ from the model's trainable ones.
    """
    path = folder / FILE
    extra = saved_extra(folder)
    with safe_open(path, framework="pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    shrink(model, saved)
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wrong = sorted(set(own) ^ set(saved)) or sorted(n for n, p in own.items() if p.shape != saved[n].shape)
    if wrong:
        raise StoreError(
            f"The adapter {path} does not fit the model: {len(wrong)} of {len(own)} parameters differ, first "
            f"{wrong[0]!r}. Attach the method with the settings and tasks it was trained with."
        )
    for name, p in own.items():
        p.copy_(saved[name])
    return extra

"""What methods keep with a model besides its parameters: values by their class, and registered modules by theirs.

Values live in one attribute of the model; modules are children of it under a name, which begins the names of their
parameters in adapters and checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

_STATES = "mtlbench_states"

Value = TypeVar("Value")
Module = TypeVar("Module", bound="nn.Module")


def attach_state(model: nn.Module, state: object) -> None:
    """Keep ``state`` with ``model``: one value of each class, such as a dataclass of the method's own.

    It is copied with the model and is no part of its ``state_dict``; a module in it is not registered. It takes the
    place of an earlier value of its class.
    """
    if _STATES not in vars(model):
        setattr(model, _STATES, {})
    vars(model)[_STATES][type(state)] = state


def find_state(model: nn.Module, kind: type[Value]) -> Value | None:
    """The value of class ``kind`` that is kept with ``model``, or ``None``."""
    found: Value | None = vars(model).get(_STATES, {}).get(kind)
    return found


def states_of(model: nn.Module) -> list[object]:
    """Every value that is kept with ``model``."""
    return list(vars(model).get(_STATES, {}).values())


def get_state(model: nn.Module, kind: type[Value]) -> Value:
    """The value of class ``kind`` that is kept with ``model``.

    Raises:
        LookupError: there is none.
    """
    found = find_state(model, kind)
    if found is None:
        raise LookupError(f"{type(model).__name__} has no {kind.__name__}: attach_state was not called with one.")
    return found


def attach_module(model: nn.Module, name: str, module: Module) -> Module:
    """Register ``module`` as the child ``name`` of ``model``, in its mode, for :func:`get_module`; gives it back.

    Raises:
        LookupError: there is one of this class or of this name.
    """
    if hasattr(model, name) or find_module(model, type(module)) is not None:
        raise LookupError(f"{type(model).__name__} already has a {type(module).__name__} or a child {name!r}.")
    model.add_module(name, module.train(model.training))
    return module


def find_module(model: nn.Module, kind: type[Module]) -> Module | None:
    """The child of ``model`` of class ``kind``, or ``None``."""
    return next((child for child in model.children() if isinstance(child, kind)), None)


def get_module(model: nn.Module, kind: type[Module]) -> Module:
    """The child of ``model`` of class ``kind``.

    Raises:
        LookupError: there is none.
    """
    found = find_module(model, kind)
    if found is None:
        raise LookupError(f"{type(model).__name__} has no {kind.__name__}: attach_module was not called with one.")
    return found


def remove_module(model: nn.Module, kind: type[nn.Module]) -> None:
    """Take the child of class ``kind`` away from ``model``, with its parameters, where there is one."""
    for name in [name for name, child in model.named_children() if isinstance(child, kind)]:
        delattr(model, name)

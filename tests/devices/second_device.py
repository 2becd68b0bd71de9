"""A second device without hardware: shapes, dtypes and devices of an accelerator, and no numbers.

torch's backend for Python (``PrivateUse1``) gives autograd its device guard. ``FakeTensorMode`` gives each operation a
result and raises where tensors of two devices meet. Whatever would make the host wait for a device is written down with
its line instead, and kernels that would be launched are counted.
"""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "secondgpu"
SEEN = ("/mtlbench/", "/mtlbench_methods/", "/transformers/", "/peft/")
"""Folders whose lines are named."""
_IN_16_BIT = ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "scaled_dot_product_attention")
_IN_FLOAT32 = ("pow.Tensor_Scalar", "rsqrt", "softmax.int", "log_softmax.int", "layer_norm", "nll_loss")
_MADE_WITHOUT_A_KERNEL = ("empty", "new_empty", "detach", "alias", "lift", "_unsafe_view", "set_", "resize_", "device")
_libraries: list[Any] = []

aten = torch.ops.aten


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        torch.set_rng_state(state)


def register() -> None:
    """Make ``torch.device(NAME)`` known, with rules of autocast; once per process."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    some = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for names, dtype in ((_IN_16_BIT, None), (_IN_FLOAT32, torch.float32)):
        for name in names:
            some.impl(name, _cast_first(name, dtype))
    _libraries.extend((others, some))


def _cast_first(name: str, dtype: torch.dtype | None) -> Any:
    base, _, overload = name.partition(".")
    op = getattr(getattr(aten, base), overload or "default")

    def run(*args: Any, **kwargs: Any) -> Any:
        wanted = dtype or torch.get_autocast_dtype(NAME)

        def cast(x: Any) -> Any:
            return x.to(wanted) if isinstance(x, Tensor) and x.is_floating_point() and x.device.type == NAME else x

        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*map(cast, args), **{key: cast(value) for key, value in kwargs.items()})

    return run


class Watch(TorchDispatchMode):
    """What operations would cost a host: where it waits, by the innermost line of :data:`SEEN`; kernels launched.

    A number that is read is 1, true, or 0.0: losses of fake rows agree.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.transfers = 0
        """Copies from the host that nothing waits for."""

    def clear(self) -> None:
        """Forget what was seen."""
        self.waits.clear()
        self.kernels.clear()
        self.transfers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            if args[0].device.type == NAME:
                self.waits[f"reads a number: {_line()}"] += 1
            return {torch.bool: True, torch.int64: 1}.get(args[0].dtype, 0.0)
        if func in (aten.equal.default, aten.allclose.default):
            if args[0].device.type == NAME:
                self.waits[f"compares: {_line()}"] += 1
            return True
        source, target = _moved(func, args, kwargs)
        if source != target:
            if kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2]):
                self.transfers += 1
            else:
                self.waits[f"copies from {source} to {target}: {_line()}"] += 1
        result = func(*args, **kwargs)
        self._count(func, args, kwargs, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = func.__name__.partition(".")[0]
        if getattr(func, "is_view", False) or name.startswith(_MADE_WITHOUT_A_KERNEL):
            return
        leaves = torch.utils._pytree.tree_leaves((result, args, kwargs))
        if any(isinstance(leaf, Tensor) and leaf.device.type == NAME for leaf in leaves):
            # kernels of lists take about a hundred tensors at once
            self.kernels[name] += max(1, -(-len(args[0]) // 100)) if "_foreach" in name or "_fused" in name else 1


def _moved(func: Any, args: Any, kwargs: Any) -> tuple[str, str]:
    """Devices from and to which data goes; the same ones where none does."""
    if func is aten._to_copy.default and kwargs.get("device") is not None:
        return args[0].device.type, torch.device(kwargs["device"]).type
    if func is aten.copy_.default:
        return args[1].device.type, args[0].device.type
    return "", ""


def _line() -> str:
    frames = [frame for frame in traceback.extract_stack() if any(folder in frame.filename for folder in SEEN)]
    if not frames:
        return "the test itself"
    path = Path(frames[-1].filename)
    return f"{path.parent.name}/{path.name}:{frames[-1].lineno}"


@contextlib.contextmanager
def second_device() -> Iterator[Watch]:
    """Inside, tensors are fake and may be on ``torch.device(NAME)``. Make real rows outside of it."""
    register()
    import transformers.masking_utils  # noqa: F401

    generator = torch.Generator
    with _no_collections(), contextlib.ExitStack() as stack:

        def put(target: str, new: Any) -> None:
            stack.enter_context(mock.patch(target, new=new))

        put("torch.nn.Module._apply", _apply)
        put("mtlbench.nn.low_rank.dropout.torch", _With(torch, Generator=lambda device="cpu": generator()))
        # transformers takes fake tensors for tracing, and would then not read what it reads of real ones
        put("transformers.masking_utils.is_tracing", lambda *_: False)
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", property(lambda _: True)))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Watch())


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """No garbage collection inside: one that met graphs of fake tensors in the middle of an operation ended a process."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        gc.collect()


def _apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """``Module._apply`` that makes new parameters: torch's own swaps tensors, which fake ones do not allow."""
    for child in self.children():
        _apply(child, fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            self._parameters[name] = nn.Parameter(fn(parameter.detach()), requires_grad=parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


class _With:
    """A module with some names changed."""

    def __init__(self, module: Any, **changed: Any) -> None:
        self.__dict__.update(changed)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

"""Quantised linears of a loaded backbone: which they are, what they are stored in, and copies that share it.

They are the modules of bitsandbytes, and plain linears whose weight is a tensor of torchao; neither is imported here.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_PACKAGES = ("bitsandbytes", "torchao")


def quantization_config(kind: str, *, dtype: torch.dtype) -> Any:
    """What ``from_pretrained`` takes to quantise a model while it is loaded, computing in ``dtype``."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "fp8":
        return TorchAoConfig(importlib.import_module("torchao.quantization").Float8WeightOnlyConfig())
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_quantized(linear: nn.Module) -> bool:
    """Whether the weight of a linear is no plain tensor, so that only the linear itself can multiply by it."""
    return _is_packed(getattr(linear, "weight", None))


def quantized_linears(model: nn.Module) -> Iterator[nn.Module]:
    """Every linear of ``model`` that :func:`is_quantized`."""
    return (module for module in model.modules() if isinstance(module, nn.Linear) and is_quantized(module))


def parameter_count(model: nn.Module) -> int:
    """Number of weights of ``model``; of packed ones, what they stand for."""
    packed = {id(m.weight): m.in_features * m.out_features for m in quantized_linears(model)}  # type: ignore[operator]
    return int(sum(packed.get(id(p), p.numel()) for p in model.parameters()))


def settle(model: nn.Module, *, dtype: torch.dtype) -> None:
    """Make quantised linears fixed functions that compute in ``dtype`` and never write into their weights.

    Left alone, bitsandbytes chooses the type at the first input, packs 4-bit weights anew for the processor at the
    first pass in evaluation mode, after which they have no gradient, and moves 8-bit weights from parameter to module.
    """
    for module in quantized_linears(model):
        linear: Any = module
        if hasattr(linear, "compute_dtype"):
            linear.compute_dtype, linear.compute_type_is_set = dtype, True
            linear.support_avx512bf16_for_cpu = False
        if hasattr(linear, "init_8bit_state"):
            linear.init_8bit_state()
            # a line for each product in another type than float16
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        if linear.bias is not None:
            linear.bias.data = linear.bias.data.to(dtype)


def shared_parameters(model: nn.Module) -> dict[int, Any]:
    """For ``copy.deepcopy``: packed parameters and their scales by id, to parameters over the same storage."""
    memo: dict[int, Any] = {}
    for module in quantized_linears(model):
        linear: Any = module
        state, scales = getattr(linear, "state", None), getattr(linear, "quant_state", None)
        if type(linear.weight).__module__.startswith("bitsandbytes"):
            memo[id(linear.weight)] = _again(linear.weight)
        memo |= {id(tensor): tensor for tensor in _of_state(state)}
        if scales is not None:
            memo[id(scales)] = scales
    return memo


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all that a model is stored in: parameters, buffers, and of packed ones codes and scales."""
    for name, p in model.named_parameters():
        yield from _parts(name, p)
    yield from model.named_buffers()
    for name, module in model.named_modules():
        for number, tensor in enumerate(_of_state(getattr(module, "state", None))):
            yield f"{name}.state.{number}", tensor


def _parts(name: str, p: Tensor) -> Iterator[tuple[str, Tensor]]:
    packed: Any = p
    if not _is_packed(p):
        yield name, p
    elif hasattr(packed, "__tensor_flatten__"):
        for part in packed.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{part}", getattr(packed, part))
    else:
        yield name, p.detach().as_subclass(Tensor)
        scales = getattr(packed, "quant_state", None)
        for part in ("absmax", "code", "offset"):
            for nested in (scales, getattr(scales, "state2", None)):
                found = getattr(nested, part, None)
                if isinstance(found, Tensor):
                    yield f"{name}.{part}", found


def _of_state(state: Any) -> list[Tensor]:
    """Weight and scales that an 8-bit linear of bitsandbytes keeps beside its parameter."""
    found = (getattr(state, name, None) for name in ("CB", "SCB")) if type(state).__name__ == "MatmulLtState" else ()
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def _again(p: nn.Parameter) -> Any:
    """Another parameter of bitsandbytes with the same storage and attributes; its own copies them."""
    again = p.data.as_subclass(type(p))
    vars(again).update({name: value for name, value in vars(p).items() if name != "module"}, module=None)
    return again


def _is_packed(weight: object) -> bool:
    return isinstance(weight, Tensor) and type(weight).__module__.partition(".")[0] in _PACKAGES

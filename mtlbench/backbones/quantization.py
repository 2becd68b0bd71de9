"""Quantised backbones by name: what ``--quantize`` offers, and what a model folder already holds. Loads no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlbench.errors import RequestError

NONE = "none"
"""Of ``Protocol.quantize``: weights as the files hold them."""


@dataclass(frozen=True)
class Quantization:
    """A way to store the frozen linears of a backbone in fewer bits."""

    name: str
    package: str
    """Distribution with its kernels, from the extra ``quantized``."""
    bytes_each: float
    """Bytes of a weight with its share of the scales."""
    about: str


_NESTED = 1 / 64 + 4 / (64 * 256)
"""Scales of 64 weights in a byte, and those of 256 scales in four, as QLoRA has them."""
KINDS: Mapping[str, Quantization] = {
    kind.name: kind
    for kind in (
        Quantization("nf4", "bitsandbytes", 0.5 + _NESTED, "4-bit NormalFloat with double quantisation, as QLoRA"),
        Quantization("fp4", "bitsandbytes", 0.5 + _NESTED, "4-bit floats with double quantisation"),
        Quantization("int8", "bitsandbytes", 1.0, "LLM.int8(): 8-bit weights and activations, outliers in 16 bits"),
        Quantization("fp8", "torchao", 1.0, "8-bit floats (e4m3) for weights alone, one scale for each row"),
    )
}
"""By the values of ``Protocol.quantize``."""

_TRAINABLE_TORCHAO = {"Float8WeightOnlyConfig": "fp8", "Int8WeightOnlyConfig": "int8"}
"""Configurations of torchao whose linears have a gradient of the input and change no activation."""


_CONV1D = ("gpt2", "openai-gpt")
"""Model types whose projections are no linears in transformers; bitsandbytes takes them, torchao does not."""


@dataclass(frozen=True)
class Stored:
    """What the ``quantization_config`` of a model says of its weights."""

    method: str
    """``bitsandbytes``, ``torchao``, ``gptq``, ``awq``, ``fp8``, ``compressed-tensors``, ..."""
    kind: str
    """A name of :data:`KINDS` with as many bits; empty where none is like it."""
    label: str
    """As a sentence names it: ``gptq, 4 bits``."""

    @property
    def trainable(self) -> bool:
        """Whether adapters can be trained on it here."""
        return bool(self.kind) and self.method in ("bitsandbytes", "torchao")


def stored_as(config: Mapping[str, Any]) -> Stored | None:
    """What a model's ``config.json`` says of quantised weights; ``None`` where they are not."""
    said: Any = config.get("quantization_config")
    said = said.to_dict() if hasattr(said, "to_dict") else said
    if not isinstance(said, Mapping) or not said:
        return None
    by_bits = said.get("load_in_8bit") or said.get("load_in_4bit")
    method = str(getattr(said.get("quant_method"), "value", said.get("quant_method")) or "")
    method = method or ("bitsandbytes" if by_bits else "an unnamed method")
    if method.startswith("bitsandbytes"):
        kind = "int8" if said.get("load_in_8bit") else str(said.get("bnb_4bit_quant_type", "fp4"))
        return Stored("bitsandbytes", kind if kind in KINDS else "", f"bitsandbytes, {kind}")
    if method == "torchao":
        given = said.get("quant_type")
        given = given.get("default", given) if isinstance(given, Mapping) else given
        name = str(given.get("_type", "")) if isinstance(given, Mapping) else str(given)
        return Stored("torchao", _TRAINABLE_TORCHAO.get(name, ""), f"torchao, {name or 'of no known type'}")
    bits = said.get("bits", said.get("w_bit"))
    return Stored(method, "", f"{method}, {bits} bits" if bits else method)


def kind_of(quantize: str, config: Mapping[str, Any]) -> Quantization | None:
    """How the frozen linears of a model are stored once it is loaded with ``quantize``; ``None`` where in full."""
    if quantize != NONE:
        return KINDS[quantize]
    stored = stored_as(config)
    return None if stored is None else KINDS.get(stored.kind)


def check_loadable(model: str, quantize: str, config: Mapping[str, Any]) -> None:
    """Refuse what cannot be loaded or trained: weights of an unknown form, quantised twice, or without its package.

    Args:
        config: The content of the model's ``config.json``; empty where it is not at hand.

    Raises:
        RequestError: saying what to use instead.
    """
    stored = stored_as(config)
    if stored is not None and quantize != NONE:
        raise RequestError(
            f"The weights of {model!r} are quantised already ({stored.label}), and --quantize {quantize} would do it "
            "again. Leave --quantize out, or name the model in full precision."
        )
    if stored is not None and not stored.trainable:
        raise RequestError(
            f"The weights of {model!r} are quantised ({stored.label}), a form that no method here trains on. Take the "
            "model that it was made from with --quantize nf4, or one saved in 4 or 8 bits with bitsandbytes, or in 8 "
            f"with torchao ({' or '.join(_TRAINABLE_TORCHAO)})."
        )
    if quantize != NONE and KINDS[quantize].package == "torchao" and config.get("model_type") in _CONV1D:
        raise RequestError(nothing_quantized(model, quantize))
    package = KINDS[quantize].package if quantize != NONE else "" if stored is None else stored.method
    if package and importlib.util.find_spec(package) is None:
        what = f"--quantize {quantize}" if quantize != NONE else f"The backbone {model!r} ({stored and stored.label})"
        raise RequestError(f"{what} needs {package}, which is not installed: pip install 'mtlbench[quantized]'.")


def nothing_quantized(model: str, quantize: str) -> str:
    """The message for a backbone without linears that this way of quantising takes."""
    return (
        f"--quantize {quantize} finds no linears in the blocks of {model!r} that {KINDS[quantize].package} can "
        "quantise, as in GPT-2. Take nf4 or int8, or another backbone."
    )


def check_methods(model: str, label: str, methods: Sequence[tuple[str, bool]]) -> None:
    """Refuse methods that train or read the frozen weights themselves.

    Args:
        label: How the weights are stored.
        methods: Names, and whether each has ``supports_quantized``.

    Raises:
        RequestError: naming them.
    """
    unfit = list(dict.fromkeys(name for name, supported in methods if not supported))
    if unfit:
        raise RequestError(
            f"{', '.join(unfit)} {'trains or reads' if len(unfit) == 1 else 'train or read'} the weights of the "
            f"backbone themselves, and those of {model!r} are quantised ({label}). Leave "
            f"{'it' if len(unfit) == 1 else 'them'} out, or take the backbone in full precision."
        )


def label_of(quantize: str, config: Mapping[str, Any]) -> str | None:
    """How the weights are stored, for sentences; ``None`` where in full."""
    if quantize != NONE:
        return quantize
    stored = stored_as(config)
    return None if stored is None else stored.label


def check_not_gguf(model: str, quantize: str) -> None:
    """Refuse ``--quantize`` for a GGUF file, whose weights are made whole when it is loaded.

    Raises:
        RequestError: naming what to use.
    """
    if quantize != NONE:
        raise RequestError(
            f"{model!r} is a GGUF file, which is loaded in full precision: --quantize {quantize} takes a folder that "
            "save_pretrained wrote, or a hub id."
        )

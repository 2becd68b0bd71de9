"""Loading of a frozen backbone, and copies that share its weights."""

from __future__ import annotations

import copy
import errno
import gc
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.backbones.checksum import Checksum
from mtlbench.backbones.generating import why_not_generating
from mtlbench.backbones.gguf import load_gguf
from mtlbench.backbones.heap import give_back
from mtlbench.backbones.layers import linears_for_conv1d
from mtlbench.backbones.loaded import check_finite, check_read, check_vocabulary
from mtlbench.backbones.machine import is_out_of_memory
from mtlbench.backbones.names import check_model, files_of, no_sdpa, not_generating, remote_code
from mtlbench.backbones.quantization import NONE, check_loadable, check_not_gguf, nothing_quantized
from mtlbench.backbones.quantized import (
    parameter_count,
    quantization_config,
    quantized_linears,
    settle,
    shared_parameters,
    stored_tensors,
)
from mtlbench.compat import sdpa_class
from mtlbench.errors import RequestError
from mtlbench.text import one_line


@dataclass(frozen=True)
class Backbone:
    """A frozen pretrained model. Never attach anything to ``model``; use :meth:`fresh` for that."""

    name: str
    model: nn.Module
    tokenizer: Any
    architecture: str
    """``causal`` or ``seq2seq``."""
    parameters: int
    fingerprint: str
    """SHA-256 of names and bytes of all weights and buffers, as they are stored."""
    checksum: Checksum = field(init=False)
    """Detects changes of weights since loading."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "checksum", Checksum(self.model))

    @property
    def pad_id(self) -> int:
        """Padding token; the end-of-sequence token where the backbone has none."""
        for value in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0):
            if value is not None:
                return int(value)
        raise AssertionError("unreachable")

    @property
    def decoder_start_id(self) -> int | None:
        """First token of the decoder's input; ``None`` for a causal backbone."""
        config: Any = self.model.config
        return config.decoder_start_token_id if self.architecture == "seq2seq" else None

    @property
    def quantized(self) -> bool:
        """Whether linears are stored in fewer bits, so that only they themselves can multiply by their weights."""
        return any(True for _ in quantized_linears(self.model))

    def fresh(self) -> nn.Module:
        """A copy of the modules over the same storage: no weight is copied, and tied weights stay tied."""
        memo: dict[int, Any] = shared_parameters(self.model)
        for module in self.model.modules():
            for p in module.parameters(recurse=False):
                if id(p) not in memo:
                    memo[id(p)] = nn.Parameter(p.detach(), requires_grad=False)
            for b in module.buffers(recurse=False):
                memo.setdefault(id(b), b.detach())
        return copy.deepcopy(self.model, memo)


def load_backbone(
    name: str, *, dtype: torch.dtype, attention: str, device: torch.device, quantize: str = NONE
) -> Backbone:
    """The backbone ``name``, frozen and in evaluation mode.

    The arguments are those of :func:`load_model`.

    Raises:
        RequestError: as :func:`load_model`.
    """
    model, tokenizer, architecture = load_model(
        name, dtype=dtype, attention=attention, device=device, quantize=quantize
    )
    gc.collect()
    give_back()  # what reading the files left: half a gigabyte for 135 million parameters
    return Backbone(
        name=name,
        model=model,
        tokenizer=tokenizer,
        architecture=architecture,
        parameters=parameter_count(model),
        fingerprint=fingerprint(model),
    )


def load_model(
    name: str, *, dtype: torch.dtype, attention: str, device: torch.device, quantize: str = NONE
) -> tuple[nn.Module, Any, str]:
    """The model ``name``, frozen and in evaluation mode, its tokenizer and its architecture.

    Args:
        name: A packaged backbone such as ``demo``, a folder, a GGUF file, or a hub id.
        attention: ``auto``, ``sdpa`` or ``eager``.
        quantize: A name of :data:`~mtlbench.backbones.quantization.KINDS` to quantise linears while they are loaded;
            ``none`` leaves them as the files hold them.

    Raises:
        RequestError: it does not exist, the hub cannot be reached, it is neither causal nor seq2seq, or its weights are
            quantised in a form that cannot be trained on.
    """
    where = _locate(name)
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(**where, trust_remote_code=False)
        check_loadable(name, quantize, vars(config))
        auto, architecture = _auto_class(name, config)
        loading: Mapping[str, Any] | None = None
        kernel = _attention(auto, config, attention)
        if "gguf_file" in where:
            check_not_gguf(name, quantize)
            model = load_gguf(auto, where, config=config, dtype=dtype, attention=kernel, device=device)
        else:
            model, loading = auto.from_pretrained(
                **where,
                config=config,
                dtype=dtype,
                attn_implementation=kernel,
                device_map={"": str(device)},  # loads each weight directly onto the device, without a copy on the host
                trust_remote_code=False,
                **({} if quantize == NONE else {"quantization_config": quantization_config(quantize, dtype=dtype)}),
                ignore_mismatched_sizes=True,  # reported in `loading`, and refused with names
                output_loading_info=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    except Exception as error:
        if not _of_files(error):
            raise
        raise RequestError(_unloadable(name, error)) from error
    if loading is not None:
        check_read(name, model, loading)
    check_finite(name, model)
    check_vocabulary(name, model, tokenizer, architecture=architecture)
    linears_for_conv1d(model)
    settle(model, dtype=dtype)
    if quantize != NONE and not any(True for _ in quantized_linears(model)):
        raise RequestError(nothing_quantized(name, quantize))
    return model.eval().requires_grad_(False), tokenizer, architecture


def empty_backbone(name: str, *, attention: str) -> tuple[nn.Module, str]:
    """A frozen backbone on the meta device, and its architecture; no weight is read.

    Raises:
        RequestError: as :func:`load_backbone`.
    """
    where = _locate(name)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(**where, trust_remote_code=False)
    except Exception as error:
        if not _of_files(error):
            raise
        raise RequestError(_unloadable(name, error)) from error
    auto, architecture = _auto_class(name, config)
    with torch.device("meta"):
        kind = _attention(auto, config, attention)
        model = auto.from_config(config, attn_implementation=kind, trust_remote_code=False)
    linears_for_conv1d(model)
    return model.eval().requires_grad_(False), architecture


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a backbone.

    Raises:
        RequestError: as :func:`load_backbone`.
    """
    where = _locate(name)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    except Exception as error:
        if not _of_files(error):
            raise
        raise RequestError(_unloadable(name, error)) from error


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all parameters and buffers, quantised ones as they are stored."""
    total = hashlib.sha256()
    for name, tensor in stored_tensors(model):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(_bytes(tensor))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _locate(name: str) -> dict[str, str]:
    """What ``from_pretrained`` takes: a folder, a GGUF file in one, or a hub id."""
    check_model(name)
    files = files_of(name)
    return {"pretrained_model_name_or_path": name} if files is None else files.where


def _auto_class(name: str, config: Any) -> tuple[Any, str]:
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
    )

    if (reason := why_not_generating(config.to_dict())) is not None:
        raise RequestError(not_generating(name, reason))
    if config.is_encoder_decoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return AutoModelForSeq2SeqLM, "seq2seq"
    if not config.is_encoder_decoder and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM, "causal"
    reason = f"({config.model_type}) is neither a causal language model nor an encoder-decoder"
    raise RequestError(not_generating(name, reason))


def _attention(auto: Any, config: Any, requested: str) -> str:
    """The kernel to load with."""
    if requested == "eager" or sdpa_class(auto, config):
        return "sdpa" if requested == "auto" else requested
    if requested == "auto":
        return "eager"
    raise ValueError(no_sdpa(config.model_type))


_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM}


def _of_files(error: Exception) -> bool:
    """Whether the files of a model are the cause of what was raised while it was loaded, not the machine."""
    if isinstance(error, RequestError) or is_out_of_memory(error):
        return False
    return not (isinstance(error, OSError) and error.errno in _MACHINE)


def _unloadable(name: str, error: Exception) -> str:
    first = one_line(str(error)) or type(error).__name__
    if not isinstance(error, (OSError, ValueError, ImportError)):
        first = f"{type(error).__name__}: {first}"
    if "custom code" in first:
        return remote_code(name)
    if "backend tokenizer" in first:
        first = "it has no tokenizer, neither tokenizer.json nor the vocabulary of one (tokenizer.model, vocab.json)."
    if files_of(name) is not None:
        return f"The backbone {name!r} cannot be loaded: {first}"
    return (
        f"The backbone {name!r} cannot be loaded from the hub: {first} "
        "Check the id and the network, or use a local folder or the embedded `demo`."
    )


ACTIVATIONS_PER_NORM = 2
"""Multiples of its width that a norm saves for backward: its input, and the same in float32 or normalised."""


@dataclass(frozen=True)
class BackboneSize:
    """Cost of one token in a backbone. The decoder of an encoder-decoder is ignored: targets are short."""

    parameters: int
    multiplied: int
    """Weights multiplied per token."""
    activations: int
    """Values saved for backward per token."""
    activations_checkpointed: int
    """The same with activation checkpointing: the input of every layer, and all values of one layer."""


def backbone_size(model: nn.Module) -> BackboneSize:
    """Assumes that outputs of linear layers and inputs of norms are saved; ignores the head, which sees few tokens."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linears = norms = 0
    multiplied = 0
    width = 0
    for name, module in model.named_modules():
        if ".decoder." in f".{name}." and hasattr(model, "get_encoder") and _is_encoder_decoder(model):
            continue
        if isinstance(module, nn.Linear) and module is not head:
            linears += module.out_features
            multiplied += module.in_features * module.out_features
            width = width or module.in_features
        elif "norm" in type(module).__name__.lower():
            norms += sum(p.numel() for p in module.parameters(recurse=False) if p.dim() == 1)
    layers = _layers(model)
    activations = linears + ACTIVATIONS_PER_NORM * norms
    return BackboneSize(
        parameters=stored_count(model),
        multiplied=multiplied,
        activations=activations,
        activations_checkpointed=layers * width + activations // max(layers, 1),
    )


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _layers(model: nn.Module) -> int:
    return max((len(module) for module in model.modules() if isinstance(module, nn.ModuleList)), default=1)


def stored_count(model: nn.Module) -> int:
    """Parameters and persistent buffers, tied ones once: what must be stored to run the model."""
    tensors = {id(t): t for t in model.state_dict(keep_vars=True).values()}
    return sum(t.numel() for t in tensors.values())

"""Whether a loaded backbone is what its name says: every weight read, finite, and as large as it must be."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from mtlbench.backbones.checkpoint import check_length, tokens_beyond
from mtlbench.backbones.quantized import stored_tensors
from mtlbench.errors import RequestError


def check_read(name: str, model: nn.Module, loading: Mapping[str, Any]) -> None:
    """Refuse a backbone of which some weights were not in its checkpoint, or some of the checkpoint were not used.

    Transformers draws missing weights at random and drops layers that the config does not count.

    Args:
        loading: What transformers returns with ``output_loading_info``.

    Raises:
        RequestError: naming the weights.
    """
    kind = type(model).__name__
    held = [str(key) for key in loading["unexpected_keys"]]
    if mismatched := list(loading["mismatched_keys"]):
        key, stored, wanted = mismatched[0]
        raise RequestError(
            f"The weights of {name!r} do not fit its config.json: {len(mismatched)} have another shape. The first: "
            f"{key} is {tuple(stored)} in the checkpoint and {tuple(wanted)} in {kind}. Save the model and its config "
            "together with save_pretrained."
        )
    if missing := sorted(loading["missing_keys"]):
        other = f" It holds {len(held)} that do not belong to it: {_some(held)}." if held else ""
        raise RequestError(
            f"The checkpoint {name!r} lacks {len(missing)} of the {len(model.state_dict())} weights of {kind}: "
            f"{_some(missing)}.{other} They would be drawn at random. Use the checkpoint of a whole language model, or "
            "rename the weights as the architecture names them."
        )
    if errors := list(loading["error_msgs"]):
        raise RequestError(f"The weights of {name!r} cannot be read: {errors[0]}")
    patterns = {_pattern(key) for key in model.state_dict()}
    if dropped := [key for key in held if _pattern(key) in patterns]:
        raise RequestError(
            f"The checkpoint {name!r} holds {len(dropped)} weights of layers that its config.json does not count: "
            f"{_some(dropped)}. They would be left out. Correct num_hidden_layers in config.json."
        )
    if adapters := [key for key in held if "lora_" in key]:
        raise RequestError(
            f"The checkpoint {name!r} holds {len(adapters)} weights of an adapter that was not merged: "
            f"{_some(adapters)}. They would be left out. Merge it (merge_and_unload) and save the result."
        )


def check_finite(name: str, model: nn.Module) -> None:
    """Refuse weights that are not a number or infinite.

    Raises:
        RequestError: naming the weights.
    """
    buffers = {key for key, _ in model.named_buffers()}
    broken = [key for key, weight in stored_tensors(model) if key not in buffers and not _finite(weight)]
    if broken:
        raise RequestError(
            f"{len(broken)} weights of {name!r} hold NaN or infinite values: {_some(broken)}. The checkpoint is "
            "damaged, or was saved after its training had diverged: use another one."
        )


def check_vocabulary(name: str, model: Any, tokenizer: Any, *, architecture: str) -> None:
    """Refuse a tokenizer and special tokens that the embedding has no rows for.

    Raises:
        RequestError: naming the tokens and both sizes.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    special = set(tokenizer.all_special_ids) | {
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special
    }
    used = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id} - {None}
    ids = {token: text for text, token in tokenizer.get_vocab().items() if token not in special - used}
    if problem := tokens_beyond(name, ids, rows=rows):
        raise RequestError(problem)
    start = model.config.decoder_start_token_id if architecture == "seq2seq" else 0
    if start is None or not -rows <= start < rows:
        raise RequestError(
            f"The encoder-decoder {name!r} has decoder_start_token_id {start} in its config.json, and its embedding "
            f"has {rows:,} rows. Set the token that its decoder was trained to start with."
        )


def check_rows_fit(name: str, model: Any, *, max_length: int) -> None:
    """Refuse rows longer than the backbone's positions.

    Raises:
        RequestError: saying what the longest row may be.
    """
    shapes = {key: tuple(weight.shape) for key, weight in model.named_parameters()}
    check_length(name, model.config.to_dict(), shapes, max_length=max_length)


def _finite(weight: torch.Tensor) -> bool:
    if not weight.is_floating_point() or weight.element_size() == 1 or not weight.numel():
        return True
    # not isfinite().all(), which makes a tensor as large as the weight
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(weight.detach()))


def _pattern(key: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", key)


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

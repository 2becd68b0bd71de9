"""Backbones in GGUF, the file format of llama.cpp: checked without loading anything, and loaded as ordinary models."""

from __future__ import annotations

import importlib.util
import mmap
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.errors import RequestError

if TYPE_CHECKING:
    import torch

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_TEMPLATE = b"tokenizer.chat_template"
_HEADER = 2**26
"""Bytes in which the key of a chat template is searched: metadata comes first, vocabularies take a few MiB."""


def gguf_in(folder: Path) -> str | None:
    """Name of the one GGUF file of a model folder; ``None`` where the folder has weights in another format, or none.

    Raises:
        RequestError: it has several.
    """
    if any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*.bin")):
        return None
    found = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise RequestError(
            f"The model folder {str(folder)!r} has {len(found)} GGUF files: {', '.join(found)}. Name one of them, such "
            f"as {str(folder / found[0])!r}."
        )
    return found[0] if found else None


def check_gguf(path: Path) -> None:
    """Fail early where a GGUF file cannot be read.

    Raises:
        RequestError: it is missing, not GGUF or one of several parts, or the package that reads it is missing.
    """
    if not path.is_file():
        raise RequestError(f"There is no GGUF file {str(path)!r}. Name a file, a model folder or a hub id.")
    if _PART.search(path.name):
        raise RequestError(
            f"{str(path)!r} is one part of a model, and transformers reads GGUF files as a whole only. Join the parts "
            "with llama.cpp's `llama-gguf-split --merge`, or use the model in safetensors."
        )
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise RequestError(f"{str(path)!r} is not a GGUF file: it does not begin with GGUF. Download it again.")
    if importlib.util.find_spec("gguf") is None:
        raise RequestError(
            f"{str(path)!r} is a GGUF file, and the package that reads it is missing: pip install 'mtlbench[gguf]'."
        )


def has_chat_template(path: Path) -> bool:
    """Whether the metadata of a GGUF file names a chat template."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_TEMPLATE, 0, _HEADER) >= 0


def load_gguf(
    auto: Any, where: dict[str, str], *, config: Any, dtype: torch.dtype, attention: str, device: torch.device
) -> Any:
    """The model of a GGUF file with its weights unpacked: one that trains, shards and saves as any other.

    transformers gives a model that it takes for quantised, which can be neither trained nor saved; so a second one is
    made over the same tensors from the configuration alone.

    Args:
        auto: The ``AutoModelFor...`` class.
        where: ``pretrained_model_name_or_path`` and ``gguf_file``.

    Raises:
        RequestError: it lacks tensors of its architecture.
    """
    import transformers

    # Without it, transformers 5.20 or later asks the hub for kernels and keeps weights packed where it finds one.
    unpack = getattr(transformers, "GgufConfig", None)
    given = {} if unpack is None else {"quantization_config": unpack(dequantize=True)}
    loaded, info = auto.from_pretrained(
        **where,
        config=config,
        dtype=dtype,
        attn_implementation=attention,
        device_map={"": str(device)},
        output_loading_info=True,
        **given,
    )
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise RequestError(
            f"The GGUF file {where['gguf_file']!r} lacks {len(lacking)} tensors of {type(loaded).__name__}, such as "
            f"{', '.join(lacking[:3])}. Download it again, or use the model in safetensors."
        )
    plain = loaded.config
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    return type(loaded).from_pretrained(
        None, config=plain, state_dict=loaded.state_dict(), dtype=dtype, attn_implementation=attention
    )

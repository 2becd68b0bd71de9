"""Tokenised rows on disk, under a digest of everything they were made of.

An entry is a safetensors file: the tokens of all rows, the lengths of their contexts and targets, and in its header the
checksum of these. One whose checksum does not hold is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mtlbench.data.cache import cache_folder, unusable, write_cached
from mtlbench.tokens.encode import Tokens

TokenPair = tuple[Tokens, Tokens]
"""Context and target of a row."""


def cached_rows(key: str, make: Callable[[], Sequence[TokenPair]]) -> Sequence[TokenPair]:
    """The rows under ``key``, or else what ``make`` gives, which is then kept."""
    path = cache_folder() / "tokens" / key[:2] / f"{key}.safetensors"
    try:
        if path.is_file():
            return _read(path)
    except Exception as error:  # whatever is wrong with it, it can be made again
        unusable(path, error)
    made = make()
    write_cached(path, _content(made))
    return made


def _read(path: Path) -> list[TokenPair]:
    """The rows of an entry.

    Raises:
        ValueError: its checksum does not hold; safetensors raises errors of its own.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = (file.metadata() or {}).get("sha256")
    if checksum != _checksum(found):
        raise ValueError("its checksum does not hold")
    tokens: list[int] = found["tokens"].tolist()
    lengths = np.stack([found["contexts"], found["targets"]], axis=1).reshape(-1).tolist()
    parts = [tuple(tokens[low:high]) for low, high in pairwise(accumulate(lengths, initial=0))]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _content(rows: Sequence[TokenPair]) -> bytes:
    from safetensors.numpy import save

    entry = {
        "tokens": np.array([token for context, target in rows for token in (*context, *target)], dtype=np.int32),
        "contexts": np.array([len(context) for context, _ in rows], dtype=np.int64),
        "targets": np.array([len(target) for _, target in rows], dtype=np.int64),
    }
    content: bytes = save(entry, metadata={"sha256": _checksum(entry)})
    return content


def _checksum(entry: dict[str, Any]) -> str:
    total = hashlib.sha256()
    for name in sorted(entry):
        array = np.ascontiguousarray(entry[name])
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.data)
    return total.hexdigest()

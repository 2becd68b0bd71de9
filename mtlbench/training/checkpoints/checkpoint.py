"""The checkpoints of an unfinished cell: tensors as safetensors, the rest as sealed JSON, each whole or not there.

A checkpoint is a pair of files. The JSON names its file of tensors with its SHA-256 and is written last, so that a
checkpoint of which anything is torn or changed is told from a whole one. Names are unique: a process that lost its
claim cannot overwrite what its successor writes.
"""

from __future__ import annotations

import logging
import math
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtlbench.errors import StoreError
from mtlbench.files.failpoints import reach
from mtlbench.files.sealed import Damaged, file_sha256, overwrite, read_sealed, seal
from mtlbench.files.temporary import atomic_write

SCHEMA = 1
ROLLING = 2
"""CheckpointStore inside a run of the loop that are kept: the newest, and the one before for when that is damaged."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class TrainingPosition:
    """Where training was. Later places compare as larger."""

    run: int
    """Number of the run of the loop, from 0."""
    ended: bool
    """The run is over."""
    step: int
    """Steps done in the run."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    place: TrainingPosition
    about: Mapping[str, Any]
    """Plain values that are read without the state."""
    plain: Any
    tensors: Path
    checksum: str
    """SHA-256 of the file of tensors."""

    def state(self) -> Any:
        """What :meth:`CheckpointStore.write` was given."""
        return unpack(self.plain, load_file(self.tensors))


class CheckpointStore:
    """A folder with the checkpoints of one cell.

    Args:
        folder: Made when the first checkpoint is written.
        identity: What must be equal for a checkpoint to be used: the cell, the code and the machine's number format.
    """

    def __init__(self, folder: Path, *, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, dict(identity)
        self.refused: list[str] = []
        """CheckpointStore that were there and not used, each with the reason."""
        self._rolling: list[Path] = []
        self._checked: dict[Path, bool] = {}

    def chain(self) -> list[Checkpoint]:
        """The ends of the runs before the newest whole checkpoint, and that one; empty to start from zero."""
        found = sorted(filter(None, map(self._read, sorted(self.folder.glob("*.json")))), key=lambda s: s.place)
        self._rolling = [saved.tensors for saved in found if not saved.place.ended]
        ends = {saved.place.run: saved for saved in found if saved.place.ended}
        for saved in reversed(found):
            before = [ends[run] for run in range(saved.place.run) if run in ends]
            if len(before) == saved.place.run and all(map(self._whole, [*before, saved])):
                return [*before, saved]
        return []

    def write(self, place: TrainingPosition, state: Any, about: Mapping[str, Any]) -> None:
        """Write a checkpoint; older ones inside runs go once it is complete.

        Raises:
            OSError, SafetensorError: it cannot be written; earlier ones are still there.
            TypeError: the state holds what is neither tensor nor plain.
        """
        plain, tensors = pack(state)
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"{place.run:03d}-{'end' if place.ended else 'at'}-{place.step:08d}-{uuid.uuid4().hex[:8]}"
        path = self.folder / f"{stem}.safetensors"
        reach("checkpoint.before_tensors")
        with atomic_write(path) as made:
            save_file(tensors, made)
            checksum = file_sha256(made)
        body = {
            "schema": SCHEMA,
            "identity": self.identity,
            "place": [place.run, place.ended, place.step],
            "tensors": checksum,
            "about": dict(about),
            "state": plain,
        }
        reach("checkpoint.after_tensors")
        overwrite(path.with_suffix(".json"), seal(body))
        reach("checkpoint.after_write")
        if not place.ended:
            self._rolling.append(path)
            while len(self._rolling) > ROLLING:
                _remove(self._rolling.pop(0))

    def clear(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def refuse(self, name: str, reason: str) -> None:
        """Remember that a checkpoint is not used."""
        _log.warning("checkpoint %s is not used: %s", self.folder / name, reason)
        self.refused.append(f"{name}: {reason}")

    def _read(self, path: Path) -> Checkpoint | None:
        try:
            body = read_sealed(path)
            if body is None:
                return None
            if body["schema"] != SCHEMA:
                self.refuse(path.name, f"it has schema {body['schema']}, this version reads {SCHEMA}")
                return None
            made = body["identity"]
            other = sorted(n for n in {*self.identity, *made} if self.identity.get(n) != made.get(n))
            if other:
                self.refuse(path.name, f"it was made with another {', '.join(other)}")
                return None
            run, ended, step = body["place"]
            return Checkpoint(
                place=TrainingPosition(run, ended, step),
                about=body["about"],
                plain=body["state"],
                tensors=path.with_suffix(".safetensors"),
                checksum=body["tensors"],
            )
        except (Damaged, StoreError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            self.refuse(path.name, f"it is damaged ({error})")
            return None

    def _whole(self, saved: Checkpoint) -> bool:
        """Whether the tensors are what was written."""
        if saved.tensors not in self._checked:
            try:
                whole = file_sha256(saved.tensors) == saved.checksum
            except OSError:
                whole = False
            self._checked[saved.tensors] = whole
            if not whole:
                self.refuse(saved.tensors.name, "it is damaged (the checksum does not match)")
        return self._checked[saved.tensors]


def _remove(tensors: Path) -> None:
    # The JSON first: without it the tensors are nothing.
    tensors.with_suffix(".json").unlink(missing_ok=True)
    tensors.unlink(missing_ok=True)


def pack(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """``state`` as JSON, and its tensors by name, as copies on the host.

    Args:
        state: Dictionaries with words or whole numbers as keys, lists, tuples (they come back as lists), tensors,
            words, numbers, truth values and ``None``, nested.

    Raises:
        TypeError: when something else is in it.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, at: str) -> Any:
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, Tensor):
            tensors[at] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            return {"tensor": at}
        if isinstance(value, (int, float)):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Mapping):
            wrong = [key for key in value if isinstance(key, bool) or not isinstance(key, (str, int))]
            if wrong:
                raise TypeError(f"{at or 'the state'} has the key {wrong[0]!r}; keys are words or whole numbers")
            return {"items": [[key, walk(inner, f"{at}/{key}")] for key, inner in value.items()]}
        if isinstance(value, (list, tuple)):
            return [walk(inner, f"{at}/{number}") for number, inner in enumerate(value)]
        raise TypeError(
            f"{at or 'the state'} is a {type(value).__name__}; state is made of tensors, numbers, words, lists and "
            "dictionaries"
        )

    return walk(state, ""), tensors


def unpack(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`pack` was given.

    Raises:
        KeyError: when a tensor is missing.
    """
    if isinstance(plain, list):
        return [unpack(inner, tensors) for inner in plain]
    if not isinstance(plain, dict):
        return plain
    if "tensor" in plain:
        return tensors[plain["tensor"]]
    if "float" in plain:
        return float(plain["float"])
    return {key: unpack(inner, tensors) for key, inner in plain["items"]}

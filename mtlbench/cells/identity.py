"""What must be equal for a checkpoint to be used: the cell, the code that trains it, and how numbers are held."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from mtlbench.api.cell import Cell
from mtlbench.api.method import Method
from mtlbench.backbones.backbone import Backbone
from mtlbench.composition import Composite

_VERSIONS = ("torch", "transformers", "peft", "numpy", "safetensors")
_OWN = tuple(
    f"mtlbench.{room}"
    for room in ("api", "balancing", "compat", "data", "nn", "tokens", "backbones", "training", "distributed")
)


def training_identity(
    cell: Cell,
    method: Method,
    backbone: Backbone,
    *,
    device: torch.device,
    dtypes: Iterable[torch.dtype | None],
    processes: int = 1,
) -> dict[str, str]:
    """The parts of the identity, by name.

    The source of the training code is among them, so that an edited method of the same version is another one.
    """
    versions = {name: metadata.version(name) for name in _VERSIONS}
    return {
        "cell": cell.key,
        "backbone": backbone.fingerprint,
        "python": platform.python_version(),
        "device": device.type,
        "dtype": " ".join(map(str, dtypes)),
        "code": code_digest(tuple(sorted({*_OWN, *_packages(method)}))),
        # Sums over devices are rounded in another order, and each draws its own dropout.
        **({"processes": str(processes)} if processes > 1 else {}),
        **versions,
    }


def _packages(method: Method) -> set[str]:
    """Top-level packages of a method and its parts."""
    parts = method.parts() if isinstance(method, Composite) else ()
    return {type(method).__module__.partition(".")[0], *(name for part in parts for name in _packages(part))} - {
        "mtlbench"
    }


@cache
def code_digest(packages: tuple[str, ...]) -> str:
    """SHA-256 over the Python files of packages or modules, by name."""
    total = hashlib.sha256()
    for package in packages:
        for path in _files(package):
            total.update(f"{package} {path.name}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def _files(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package) if package != "__main__" else None
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return sorted(path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.py"))
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []

"""What generated rows depend on, as a digest."""

from __future__ import annotations

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path

_GENERATOR = re.compile(r"^ *from (mtlbench\.demo\.\w+|mtlbench_tasks\.\w+) import", re.MULTILINE)


def source_digest(*modules: str) -> str:
    """Digest of the source of ``modules`` and of all modules of the generator behind them, found by their imports.

    None of them is loaded.
    """
    open_, sources = list(modules), dict[str, str]()
    while open_:
        found = open_.pop()
        if found not in sources:
            package, _, name = found.rpartition(".")
            sources[found] = (_folder(package) / f"{name}.py").read_text()
            open_ += _GENERATOR.findall(sources[found])
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:16]


def _folder(package: str) -> Path:
    head, *inner = package.split(".")
    spec = find_spec(head)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).joinpath(*inner)

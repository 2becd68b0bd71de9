"""Digest of the source code that generates demo data."""

from __future__ import annotations

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path

_GENERATOR = re.compile(r"^ *from (mtlbench\.demo\.\w+|mtlbench_tasks\.\w+) import", re.MULTILINE)


def source_digest(*modules: str) -> str:
    """Digest of the source of ``modules`` and of all generator modules that they import, directly or indirectly.

    None of them is loaded.
    """
    open_, sources = list(modules), dict[str, str]()
    while open_:
        module = open_.pop()
        if module not in sources:
            package, _, name = module.rpartition(".")
            sources[module] = (_folder(package) / f"{name}.py").read_text()
            open_ += _GENERATOR.findall(sources[module])
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:16]


def _folder(package: str) -> Path:
    head, *inner = package.split(".")
    spec = find_spec(head)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).joinpath(*inner)

"""A digest of everything that defines the prompts of tasks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from mtlbench.api.cell import digest
from mtlbench.api.task import Task
from mtlbench.data.lm_task import yaml_path

_INCLUDE = re.compile(r"^include:\s*['\"]?(.+?)['\"]?\s*$", re.MULTILINE)
_IMPORT = re.compile(r"^\s*(?:from|import)\s+([\w.]+)", re.MULTILINE)
_FUNCTION = re.compile(r"!function\s+['\"]?([\w.]+)\.\w+")


def prompt_identity(tasks: Mapping[str, Task]) -> str:
    """``lm_eval <version>:<digest>`` of the prompt files of ``tasks``: YAML files, their includes, their functions, and
    what those import from their own package.

    Raises:
        PluginError: a task's YAML is missing.
    """
    contents: dict[Path, str] = {}
    content = {
        name: [
            task.shots,
            task.shots_split,
            task.shots_by,
            sorted(_content(path, contents) for path in _files(yaml_path(task), set())),
        ]
        for name, task in tasks.items()
    }
    return f"lm_eval {metadata.version('lm_eval')}:{digest(content, length=8)}"


def _files(path: Path, seen: set[Path]) -> Iterable[Path]:
    """The file and those it includes or imports, each once."""
    if path in seen or not path.is_file():
        return
    seen.add(path)
    yield path
    if path.suffix == ".py":
        for module in _IMPORT.findall(path.read_text(encoding="utf-8")):
            # Only from its own package: other packages are identified by their versions.
            for root in path.parents[1:4]:
                yield from _files(root / f"{module.replace('.', '/')}.py", seen)
        return
    text = path.read_text(encoding="utf-8")
    for name in _INCLUDE.findall(text):
        yield from _files(path.parent / name, seen)
    for module in _FUNCTION.findall(text):
        yield from _files(path.parent / f"{module.replace('.', '/')}.py", seen)


def _content(path: Path, known: dict[Path, str]) -> str:
    if path not in known:
        known[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return known[path]

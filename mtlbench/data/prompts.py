"""What defines the prompts of tasks, as a digest."""

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
    """``lm_eval <version>:<digest>`` of the prompt files of ``tasks``: YAML, what it includes, the code it names,
    and what that imports of its own package.

    Raises:
        PluginError: a task's YAML is missing.
    """
    contents: dict[Path, str] = {}
    held = {
        name: [
            task.shots,
            task.shots_split,
            task.shots_by,
            sorted(_content(path, contents) for path in _files(yaml_path(task), set())),
        ]
        for name, task in tasks.items()
    }
    return f"lm_eval {metadata.version('lm_eval')}:{digest(held, length=8)}"


def _files(path: Path, seen: set[Path]) -> Iterable[Path]:
    """The file and those it leads to, each once."""
    if path in seen or not path.is_file():
        return
    seen.add(path)
    yield path
    if path.suffix == ".py":
        for module in _IMPORT.findall(path.read_text(encoding="utf-8")):
            # of its own package: what other packages do is told by their versions
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

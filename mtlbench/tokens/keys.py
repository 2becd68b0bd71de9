"""What the tokens of a task's rows depend on, as a digest.

It holds the rows as they are handed to the prompt, the prompt's definition and code, the tokenizer, how rows are cut,
and the versions of all that makes text and tokens. Nothing is said by the name or place of a data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.api.task import Task
from mtlbench.data.lm_task import quiet_lm_eval, yaml_path

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

FORMAT = 1
"""Of an entry; a change makes all earlier ones unreachable."""
VERSIONS = ("mtlbench", "lm_eval", "jinja2", "tokenizers", "transformers")
_OWN = Path(__file__).parents[1]
_CODE = (*sorted((_OWN / "data").glob("*.py")), Path(__file__).parent / "encode.py")
"""What of this package makes token ids of rows."""


def rows_key(
    task: Task,
    lm_task: ConfigurableTask,
    rows: Sequence[int],
    *,
    tokenizer: str,
    architecture: str,
    max_length: int,
    append_eos: bool,
) -> str:
    """The key of the training rows numbered ``rows``.

    Args:
        tokenizer: Its :func:`tokenizer_digest`.
    """
    with quiet_lm_eval():
        docs = lm_task.training_docs()
    pool = getattr(lm_task.config.fewshot_config, "samples", None)
    parts = {
        "format": FORMAT,
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "code": _code_digest(_CODE),
        "task": _definition_digest(yaml_path(task), task.yaml.partition(":")[0]),
        "shots": [task.shots, str(task.shots_by), json.dumps(pool, default=str, sort_keys=True)],
        "rows": _content_digest(docs, rows),
        "tokenizer": tokenizer,
        "cut": [architecture, max_length, append_eos],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_digest(tokenizer: Any) -> str | None:
    """A digest of all that a tokenizer does; ``None`` for one written in Python, which cannot be told from another."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    tokenizer(["a"], add_special_tokens=True)  # leaves truncation and padding as every call does
    words = [type(tokenizer).__name__, backend.to_str(), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _content_digest(docs: Any, rows: Sequence[int]) -> str:
    """Of names, types and values of the rows, wherever they were read from."""
    import pyarrow

    # by position: a selection would first be given a fingerprint, which takes longer than all else here
    table = docs.with_format("arrow")[list(rows)].combine_chunks()
    total = hashlib.sha256()
    with pyarrow.ipc.new_stream(_Sink(total), table.schema.remove_metadata()) as stream:
        stream.write_table(table.replace_schema_metadata(None))
    return total.hexdigest()


class _Sink:
    """A file that only hashes what is written."""

    closed = False

    def __init__(self, total: Any) -> None:
        self._total = total

    def write(self, data: Any) -> int:
        self._total.update(data)
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _definition_digest(path: Path, package: str) -> str:
    """Of the YAML and all code and YAML that it can reach: its folder, and its package unless that is lm-eval."""
    folder = path.parent if package == "lm_eval" else _package_folder(path, package)
    return _code_digest(tuple(sorted([*folder.rglob("*.py"), *folder.rglob("*.yaml")])), path)


def _package_folder(path: Path, package: str) -> Path:
    return next((parent for parent in path.parents if parent.name == package.partition(".")[0]), path.parent)


@cache
def _code_digest(files: tuple[Path, ...], *more: Path) -> str:
    total = hashlib.sha256()
    for file in (*files, *more):
        total.update(f"{file.name}\n".encode())
        total.update(file.read_bytes())
    return total.hexdigest()

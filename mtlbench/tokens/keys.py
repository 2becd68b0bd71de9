"""Cache keys of tokenised examples: a digest of everything the tokens depend on.

That is the rows from which prompts are made, definition and code of the prompt, the tokenizer, truncation, and the
versions of the packages that make texts and tokens. Name and location of a data set are irrelevant.
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
    from mtlbench.compat import ConfigurableTask

FORMAT = 3
"""Format of an entry; changing it invalidates all earlier entries."""
VERSIONS = ("mtlbench", "lm_eval", "jinja2", "tokenizers", "transformers")
_PACKAGE = Path(__file__).parents[1]
_CODE = (
    *sorted((_PACKAGE / "data").glob("*.py")),
    _PACKAGE / "compat.py",
    *(Path(__file__).parent / name for name in ("encode.py", "facts.py")),
)
"""Files of this package that affect token ids."""


def rows_key(
    task: Task,
    lm_task: ConfigurableTask,
    rows: Sequence[int],
    *,
    tokenizer: str,
    architecture: str,
    max_length: int,
    append_eos: bool,
    evaluation: bool = False,
    chat: str = "",
) -> str:
    """The key of the training examples with the indices ``rows``, or of the evaluation examples.

    Args:
        tokenizer: The :func:`tokenizer_digest`.
        chat: The chat template, where one is applied.
    """
    with quiet_lm_eval():
        docs = lm_task.validation_docs() if evaluation else lm_task.training_docs()
    pool = getattr(lm_task.config.fewshot_config, "samples", None)
    content = {
        "format": FORMAT,
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "code": _code_digest(_CODE),
        "task": _definition_digest(yaml_path(task), task.yaml.partition(":")[0]),
        "shots": [task.shots, str(task.shots_by), json.dumps(pool, default=str, sort_keys=True)],
        "rows": _content_digest(docs, rows),
        "tokenizer": tokenizer,
        "cut": [architecture, max_length, append_eos],
        "evaluation": evaluation,
        "chat": chat,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tokenizer_digest(tokenizer: Any) -> str | None:
    """A digest of the tokenizer's behaviour; ``None`` for one written in Python, whose state is not accessible."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    tokenizer(["a"], add_special_tokens=True)  # sets truncation and padding to the state that every call leaves
    state = [type(tokenizer).__name__, backend.to_str(), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _content_digest(docs: Any, rows: Sequence[int]) -> str:
    """Digest of column names, types and values of the rows, independent of their source."""
    import pyarrow

    # Indexing, not select(): that would compute a fingerprint, which takes longer than everything else here.
    table = docs.with_format("arrow")[list(rows)].combine_chunks()
    total = hashlib.sha256()
    with pyarrow.ipc.new_stream(_Sink(total), table.schema.remove_metadata()) as stream:
        stream.write_table(table.replace_schema_metadata(None))
    return total.hexdigest()


class _Sink:
    """A file object that hashes what is written."""

    closed = False

    def __init__(self, total: Any) -> None:
        self._total = total

    def write(self, data: Any) -> int:
        self._total.update(data)
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _definition_digest(path: Path, package: str) -> str:
    """Digest of the YAML and all code and YAML it may use: its folder, and its package unless that is lm-eval."""
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

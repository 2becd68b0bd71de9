"""Cache of tokenised examples on disk, keyed by a digest of everything they depend on.

An entry is a safetensors file with the tokens of all examples, the lengths of their contexts and targets, and what else
is known of each; its header holds a checksum. An entry whose checksum does not match is made again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlbench.api.task import Task
from mtlbench.backbones.backbone import Backbone
from mtlbench.data.cache import cache_folder, unusable, write_cached
from mtlbench.data.examples import training_pairs
from mtlbench.errors import DataError
from mtlbench.tokens.chat import ChatPrompts
from mtlbench.tokens.encode import TokenRow, Tokens, encode_rows
from mtlbench.tokens.facts import RowFacts, evaluation_facts, training_facts
from mtlbench.tokens.keys import rows_key, tokenizer_digest

if TYPE_CHECKING:
    from mtlbench.compat import ConfigurableTask

CachedRow = tuple[Tokens, Tokens, RowFacts]
"""Context and target of an example, empty for an evaluation example, and what else is known of it."""


def cached_rows(key: str, make: Callable[[], Sequence[CachedRow]]) -> Sequence[CachedRow]:
    """The examples cached under ``key``; otherwise the result of ``make``, which is then cached."""
    folder = cache_folder()
    if folder is None:
        return make()
    path = folder / "tokens" / key[:2] / f"{key}.safetensors"
    try:
        if path.is_file():
            return _read(path)
    except Exception as error:  # any damage can be repaired by making the entry again
        unusable(path, error)
    made = make()
    write_cached(path, _content(made))
    return made


def _read(path: Path) -> list[CachedRow]:
    """The examples of an entry.

    Raises:
        ValueError: the checksum does not match; safetensors raises its own errors.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        entry = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = (file.metadata() or {}).get("sha256")
    if checksum != _checksum(entry):
        raise ValueError("its checksum does not match")
    tokens: list[int] = entry["tokens"].tolist()
    lengths = np.stack([entry["contexts"], entry["targets"]], axis=1).reshape(-1).tolist()
    texts = [tuple(tokens[low:high]) for low, high in pairwise(accumulate(lengths, initial=0))]
    facts = [
        RowFacts(int(cut), bool(into), int(question))
        for cut, into, question in zip(entry["cut"], entry["into_question"], entry["question"], strict=True)
    ]
    return list(zip(texts[::2], texts[1::2], facts, strict=True))


def _content(rows: Sequence[CachedRow]) -> bytes:
    from safetensors.numpy import save

    entry = {
        "tokens": np.array([token for context, target, _ in rows for token in (*context, *target)], dtype=np.int32),
        "contexts": np.array([len(context) for context, _, _ in rows], dtype=np.int64),
        "targets": np.array([len(target) for _, target, _ in rows], dtype=np.int64),
        "cut": np.array([facts.cut for _, _, facts in rows], dtype=np.int64),
        "into_question": np.array([facts.into_question for _, _, facts in rows], dtype=np.int8),
        "question": np.array([facts.question for _, _, facts in rows], dtype=np.int64),
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


logger = logging.getLogger(__name__)


class Tokenised:
    """Tokenises examples for one backbone.

    Attributes:
        cached: Rows so far whose tokens were read from the cache on disk instead of made.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.cached = 0
        self._tokenizer = tokenizer_digest(backbone.tokenizer)
        if self._tokenizer is None:
            logger.debug("%s has a tokenizer written in Python: its tokens are not cached on disk", backbone.name)

    def training(
        self,
        task: Task,
        lm_task: ConfigurableTask,
        numbers: Sequence[int],
        *,
        index: int,
        max_length: int,
        chat: ChatPrompts | None = None,
    ) -> tuple[list[TokenRow], list[RowFacts]]:
        """The training examples with the indices ``numbers``, with the task id ``index``, and facts of each; ``chat``
        renders their prompts.

        Raises:
            DataError: an answer is empty, or too long for ``max_length``.
        """

        def make() -> list[CachedRow]:
            rows = encode_rows(
                self._backbone.tokenizer,
                training_pairs(lm_task, numbers, chat=chat),
                task=index,
                architecture=self._backbone.architecture,
                max_length=max_length,
                append_eos=lm_task.OUTPUT_TYPE == "generate_until",
            )
            cut, kept = [row.cut for row in rows], [len(row.context) for row in rows]
            facts = training_facts(self._backbone.tokenizer, lm_task, numbers, cut=cut, kept=kept, chat=chat)
            return [(row.context, row.target, each) for row, each in zip(rows, facts, strict=True)]

        made = self._made(task, lm_task, numbers, make, max_length=max_length, evaluation=False, chat=chat)
        rows = [
            TokenRow(task=index, context=context, target=target, cut=facts.cut, doc=doc)
            for doc, (context, target, facts) in zip(numbers, made, strict=True)
        ]
        return rows, [facts for _, _, facts in made]

    def evaluation(
        self,
        task: Task,
        lm_task: ConfigurableTask,
        numbers: Sequence[int],
        *,
        max_length: int,
        chat: ChatPrompts | None = None,
    ) -> list[RowFacts]:
        """Facts of the evaluation examples with the indices ``numbers``.

        Raises:
            DataError: an answer does not fit into ``max_length``.
        """

        def make() -> list[CachedRow]:
            facts = evaluation_facts(
                self._backbone.tokenizer,
                lm_task,
                numbers,
                architecture=self._backbone.architecture,
                max_length=max_length,
                chat=chat,
            )
            return [((), (), each) for each in facts]

        made = self._made(task, lm_task, numbers, make, max_length=max_length, evaluation=True, chat=chat)
        return [facts for _, _, facts in made]

    def _made(
        self,
        task: Task,
        lm_task: ConfigurableTask,
        numbers: Sequence[int],
        make: Callable[[], list[CachedRow]],
        *,
        max_length: int,
        evaluation: bool,
        chat: ChatPrompts | None,
    ) -> Sequence[CachedRow]:
        """The cached rows, or those of ``make`` where there are none or the tokenizer has no digest."""
        try:
            if self._tokenizer is None:
                return make()
            key = rows_key(
                task,
                lm_task,
                numbers,
                tokenizer=self._tokenizer,
                architecture=self._backbone.architecture,
                max_length=max_length,
                append_eos=lm_task.OUTPUT_TYPE == "generate_until",
                evaluation=evaluation,
                chat="" if chat is None else chat.identity(),
            )
            made: list[CachedRow] = []

            def make_now() -> Sequence[CachedRow]:
                made.extend(make())
                return made

            rows = cached_rows(key, make_now)
            self.cached += 0 if made else len(rows)
            return rows
        except DataError as error:
            raise DataError(f"Task {task.name}: {error}") from error

"""Cache of tokenised examples on disk, keyed by a digest of everything they depend on.

An entry of training examples holds their tokens, the lengths of their contexts and targets, and what else is known of
each; an entry of evaluation examples holds the tokens of their requests instead. Examples are tokenised in parts, and
only their arrays are held.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mtlbench.api.task import Task
from mtlbench.backbones.backbone import Backbone
from mtlbench.data.examples import training_pairs
from mtlbench.data.lm_task import quiet_lm_eval
from mtlbench.errors import DataError
from mtlbench.files.heartbeat import beat
from mtlbench.tokens.chat import ChatPrompts
from mtlbench.tokens.encode import TokenRow, encode_rows
from mtlbench.tokens.entries import Entry, cached_entry
from mtlbench.tokens.facts import RowFacts, evaluation_facts, training_facts
from mtlbench.tokens.keys import rows_key, tokenizer_digest
from mtlbench.tokens.requests import RequestMaker, RequestTokens
from mtlbench.tokens.rows import CachedRow, CachedRows, entry_of, facts_in, parts_of

if TYPE_CHECKING:
    from mtlbench.compat import ConfigurableTask

PART = 4096
"""Training examples that are tokenised at once: each costs about 30 KB meanwhile."""
EVALUATION_PART = 1024
"""The same of evaluation examples, which have several requests each."""
_FACTS = ("cut", "into_question", "question")


def cached_rows(key: str, make: Callable[[], Iterable[CachedRow]]) -> CachedRows:
    """The examples cached under ``key``; otherwise those of ``make``, which are then cached."""
    return CachedRows(cached_entry(key, lambda: entry_of(make()))[0])


logger = logging.getLogger(__name__)


class Tokenised:
    """Tokenises examples for one backbone.

    Attributes:
        cached: Rows so far whose tokens were read from the cache on disk instead of made.
        requests: Tokens of the requests of all evaluation examples so far.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.cached = 0
        self.requests = RequestTokens()
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

        def make() -> Iterator[CachedRow]:
            with quiet_lm_eval():
                docs = lm_task.training_docs()
            for part in parts_of(numbers, PART):
                rows = encode_rows(
                    self._backbone.tokenizer,
                    training_pairs(lm_task, part, chat=chat, docs=docs),
                    task=index,
                    architecture=self._backbone.architecture,
                    max_length=max_length,
                    append_eos=lm_task.OUTPUT_TYPE == "generate_until",
                )
                cut, kept = [row.cut for row in rows], [len(row.context) for row in rows]
                facts = training_facts(
                    self._backbone.tokenizer, lm_task, part, cut=cut, kept=kept, chat=chat, docs=docs
                )
                yield from ((row.context, row.target, each) for row, each in zip(rows, facts, strict=True))
                beat()

        entry = self._made(
            task,
            lm_task,
            numbers,
            lambda: entry_of(make()),
            max_length=max_length,
            evaluation=False,
            chat=chat,
        )
        cached = CachedRows(entry)
        return cached.rows(task=index, docs=numbers), cached.facts()

    def evaluation(
        self,
        task: Task,
        lm_task: ConfigurableTask,
        numbers: Sequence[int],
        *,
        max_length: int,
        chat: ChatPrompts | None = None,
    ) -> list[RowFacts]:
        """Facts of the evaluation examples with the indices ``numbers``; the tokens of their requests join
        :attr:`requests`.

        Raises:
            DataError: an answer does not fit into ``max_length``.
        """

        def make() -> Entry:
            requests, facts = RequestMaker(), list[RowFacts]()
            with quiet_lm_eval():
                docs = lm_task.validation_docs()
            for part in parts_of(numbers, EVALUATION_PART):
                facts += evaluation_facts(
                    self._backbone.tokenizer,
                    lm_task,
                    part,
                    architecture=self._backbone.architecture,
                    max_length=max_length,
                    chat=chat,
                    docs=docs,
                    keep=requests.add,
                )
                beat()
            known = entry_of(((), (), each) for each in facts)
            return {name: known[name] for name in _FACTS} | requests.entry()

        entry = self._made(task, lm_task, numbers, make, max_length=max_length, evaluation=True, chat=chat)
        self.requests.add(entry)
        return facts_in(*(entry[name] for name in _FACTS))

    def _made(
        self,
        task: Task,
        lm_task: ConfigurableTask,
        numbers: Sequence[int],
        make: Callable[[], Entry],
        *,
        max_length: int,
        evaluation: bool,
        chat: ChatPrompts | None,
    ) -> Entry:
        """The cached entry, or that of ``make`` where there is none or the tokenizer has no digest."""
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
            entry, made = cached_entry(key, make)
            self.cached += 0 if made else len(numbers)
            return entry
        except DataError as error:
            raise DataError(f"Task {task.name}: {error}") from error

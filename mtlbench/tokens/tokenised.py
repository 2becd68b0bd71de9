"""Training examples as token ids, tokenised once for all cells, workers and studies on this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtlbench.api.task import Task
from mtlbench.backbones.backbone import Backbone
from mtlbench.data.examples import training_pairs
from mtlbench.errors import DataError
from mtlbench.tokens.cache import TokenPair, cached_rows
from mtlbench.tokens.encode import TokenRow, encode_rows
from mtlbench.tokens.keys import rows_key, tokenizer_digest

if TYPE_CHECKING:
    from mtlbench.compat import ConfigurableTask

logger = logging.getLogger(__name__)


class Tokenised:
    """Tokenises training examples for one backbone."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._tokenizer = tokenizer_digest(backbone.tokenizer)
        if self._tokenizer is None:
            logger.debug("%s has a tokenizer written in Python: its tokens are not cached on disk", backbone.name)

    def rows(
        self, task: Task, lm_task: ConfigurableTask, numbers: Sequence[int], *, index: int, max_length: int
    ) -> list[TokenRow]:
        """The examples with the indices ``numbers``, with the task id ``index``.

        Raises:
            DataError: an answer is empty, or too long for ``max_length``.
        """
        architecture, append_eos = self._backbone.architecture, lm_task.OUTPUT_TYPE == "generate_until"

        def make() -> list[TokenPair]:
            try:
                rows = encode_rows(
                    self._backbone.tokenizer,
                    training_pairs(lm_task, numbers),
                    task=index,
                    architecture=architecture,
                    max_length=max_length,
                    append_eos=append_eos,
                )
            except DataError as error:
                raise DataError(f"Task {task.name}: {error}") from error
            return [(row.context, row.target) for row in rows]

        if self._tokenizer is None:
            pairs: Sequence[TokenPair] = make()
        else:
            key = rows_key(
                task,
                lm_task,
                numbers,
                tokenizer=self._tokenizer,
                architecture=architecture,
                max_length=max_length,
                append_eos=append_eos,
            )
            pairs = cached_rows(key, make)
        return [TokenRow(task=index, context=context, target=target) for context, target in pairs]

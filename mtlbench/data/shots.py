"""Worked examples of few-shot prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lm_eval.api.samplers import ContextSampler


class FirstOthers(ContextSampler):  # type: ignore[misc]
    """The first ``n`` rows of the pool but the one that is asked, or all of them where there are fewer.

    lm-eval's ``first_n`` refuses a pool of ``n`` rows that holds the row that is asked; MMLU's five worked examples per
    subject are also its training rows.
    """

    column: ClassVar[str | None] = None
    """The rows share the value of this column with the one that is asked."""

    def sample(
        self,
        n: int,
        eval_doc: dict[str, Any] | None = None,
        df: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Sequence[dict[str, Any]]:
        """The rows, in order."""
        pool = df or self.df
        if self.column is not None and eval_doc is not None:
            pool = [doc for doc in pool if doc[self.column] == eval_doc[self.column]]
        return [doc for doc in pool if doc != eval_doc][:n]


def sampler(column: str | None) -> type[FirstOthers]:
    """Sampler of worked examples that share the value of ``column`` with the row that is asked, if one is named."""
    return type("FirstOthersAlike", (FirstOthers,), {"column": column})

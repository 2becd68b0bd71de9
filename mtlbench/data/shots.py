"""Sampling of few-shot examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lm_eval.api.samplers import ContextSampler


class FirstOthers(ContextSampler):  # type: ignore[misc]
    """The first ``n`` rows of the pool except the row being evaluated; fewer if the pool is smaller.

    lm-eval's ``first_n`` rejects a pool of ``n`` rows that contains the evaluated row, but the five few-shot examples
    per subject of MMLU are also training rows.
    """

    column: ClassVar[str | None] = None
    """Column whose value must equal that of the evaluated row."""

    def sample(
        self,
        n: int,
        eval_doc: dict[str, Any] | None = None,
        df: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Sequence[dict[str, Any]]:
        """The few-shot examples, in order."""
        pool = df or self.df
        if self.column is not None and eval_doc is not None:
            pool = [doc for doc in pool if doc[self.column] == eval_doc[self.column]]
        return [doc for doc in pool if doc != eval_doc][:n]


def sampler(column: str | None) -> type[FirstOthers]:
    """Sampler of few-shot examples, restricted to those with the same value of ``column`` if one is given."""
    return type("FirstOthersAlike", (FirstOthers,), {"column": column})

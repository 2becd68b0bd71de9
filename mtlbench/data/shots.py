"""Worked examples of few-shot prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler


class FirstOthers(ContextSampler):  # type: ignore[misc]
    """The first ``n`` rows of the pool but the one that is asked, or all of them where there are fewer.

    lm-eval's ``first_n`` refuses a pool of ``n`` rows that holds the row that is asked; MMLU's five worked examples per
    subject are also its training rows.
    """

    def sample(
        self,
        n: int,
        eval_doc: dict[str, Any] | None = None,
        df: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Sequence[dict[str, Any]]:
        """The rows, in order."""
        return [doc for doc in (df or self.df) if doc != eval_doc][:n]

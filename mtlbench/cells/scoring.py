"""Scoring a cell: its tasks after training, in training on rows kept from it, and its probe tasks before and after."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mtlbench.api.record import ProbeScore
from mtlbench.backbones.machine import free_memory, is_out_of_memory
from mtlbench.cells.attempt import CellAttempt, TrainingContext
from mtlbench.cells.bench import token_budget
from mtlbench.data.lm_task import scored_on_training
from mtlbench.evaluation.evaluate import Evaluation, evaluate
from mtlbench.text import one_line

if TYPE_CHECKING:
    from mtlbench.compat import ConfigurableTask
    from mtlbench.tokens.encode import TokenRow

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProbeEvaluation:
    """The probe tasks of a cell."""

    scores: Mapping[str, ProbeScore] = field(default_factory=dict)
    samples: tuple[dict[str, Any], ...] = ()
    """Predictions after training, as of :class:`~mtlbench.evaluation.evaluate.Evaluation`."""


@dataclass
class Scorer:
    """Scores models of one attempt; less memory for one evaluation holds for those after it."""

    attempt: CellAttempt
    around: TrainingContext
    token_budget: int = 0
    """Tokens of a batch; lower than the device's where memory ran out."""

    def __post_init__(self) -> None:
        self.token_budget = token_budget(self.around.bench.device)

    def tasks(self) -> Evaluation:
        """The tasks of the cell, by the trained model."""
        lm_tasks = self.attempt.prepared.lm_tasks
        return self._score(self.attempt.model, {name: lm_tasks[name] for name in self.attempt.cell.scored})

    def metric(self, rows: Sequence[TokenRow]) -> float:
        """Mean over the tasks of ``rows`` of their metrics on these training examples, in percent.

        A metric that is undefined counts 0, as a constant answer's correlation does. Random states stay as they are,
        so that training goes on as it would have without it.
        """
        device, prepared = self.around.bench.device, self.attempt.prepared
        docs: dict[str, list[int]] = {}
        names = list(prepared.tasks)
        for row in rows:
            docs.setdefault(names[row.task], []).append(row.doc)
        lm_tasks = {name: scored_on_training(prepared.lm_tasks[name], sorted(of)) for name, of in docs.items()}
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = self._score(self.attempt.model, lm_tasks, every_row=True)
        scores = [score.score for score in found.scores.values()]
        return sum(score if math.isfinite(score) else 0.0 for score in scores) / len(scores)

    def probe(self) -> ProbeEvaluation:
        """The probe tasks, by the untrained backbone and by the trained model.

        A method whose output depends on the task id has parameters for the tasks it trained only. Which of them would
        answer for another task is the method's to say, and no method says it: its probe has a reason instead.
        """
        attempt = self.attempt
        lm_tasks = attempt.prepared.probe
        if not lm_tasks:
            return ProbeEvaluation()
        before = self.around.bench.untrained(
            attempt.cell, lambda: self._score(attempt.backbone.fresh(), lm_tasks).scores
        )
        if attempt.method.task_routed:
            reason = (
                f"{one_line(attempt.cell.variant)} routes examples by their task, and has no parameters for a task "
                "that it did not train"
            )
            return ProbeEvaluation(
                scores={n: ProbeScore(before=s, after=None, refusal=reason) for n, s in before.items()}
            )
        after = self._score(attempt.model, lm_tasks)
        scores = {name: ProbeScore(before=score, after=after.scores[name]) for name, score in before.items()}
        return ProbeEvaluation(scores=scores, samples=tuple(after.samples))

    def _score(
        self, model: nn.Module, lm_tasks: Mapping[str, ConfigurableTask], *, every_row: bool = False
    ) -> Evaluation:
        """Score tasks; where memory runs out, again with half the tokens at once, until one row is left.

        The longest rows come first, so that little is computed twice.
        """
        device = self.around.bench.device
        while True:
            try:
                with self.around.ranks.in_step(model):
                    return self._evaluate(model, lm_tasks, None if every_row else self.attempt.cell.protocol.eval_rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.token_budget == 1:
                    raise
                self.token_budget //= 2
                logger.warning("memory ran out in evaluation: %d tokens at once from here on", self.token_budget)
            free_memory(device)

    def _evaluate(
        self, model: nn.Module, lm_tasks: Mapping[str, ConfigurableTask], eval_rows: int | None
    ) -> Evaluation:
        attempt, protocol = self.attempt, self.attempt.cell.protocol
        trained = {name: number for number, name in enumerate(attempt.prepared.tasks)}
        return evaluate(
            model,
            attempt.backbone.tokenizer,
            architecture=attempt.backbone.architecture,
            lm_tasks=lm_tasks,
            # The id of a probe task changes nothing: whoever scores it does not route.
            task_ids={**dict.fromkeys(lm_tasks, 0), **trained},
            metrics={name: attempt.prepared.metrics[name] for name in lm_tasks},
            routing=attempt.routing,
            max_length=protocol.max_length,
            token_budget=self.token_budget,
            eval_rows=eval_rows,
            chat_template=protocol.chat_template,
        )

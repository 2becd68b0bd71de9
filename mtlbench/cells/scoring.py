"""Scoring a cell: its tasks after training and merging, in training on rows kept from it, and its probe tasks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mtlbench.api.record import Notes, ProbeScore, TaskScore
from mtlbench.backbones.backbone import stored_count
from mtlbench.backbones.machine import free_memory, is_out_of_memory
from mtlbench.cells.attempt import CellAttempt, TrainingContext
from mtlbench.cells.bench import token_budget
from mtlbench.data.lm_task import scored_on_training
from mtlbench.evaluation.evaluate import Evaluation, evaluate
from mtlbench.files.failpoints import reach
from mtlbench.nn.attachments import attach_state
from mtlbench.nn.low_rank.merging import Merging
from mtlbench.nn.low_rank.siblings import forgotten_on_failure
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


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How a trained model was scored."""

    tasks: Evaluation
    probe: ProbeEvaluation
    seconds: float
    """Of the evaluation of the tasks."""
    parameters: int
    """Parameters and buffers that the method adds at inference."""
    notes: Notes


@dataclass
class Scorer:
    """Scores models of one attempt; less memory for one evaluation holds for those after it."""

    attempt: CellAttempt
    around: TrainingContext
    token_budget: int = 0
    """Tokens of a batch; lower than the device's where memory ran out."""
    merging: Merging = field(default_factory=Merging)

    def __post_init__(self) -> None:
        self.token_budget = token_budget(self.around.bench.device)

    def run(self) -> Scored:
        """Let the method merge or collapse what it trained, and score the tasks with what is left.

        The frozen weights are afterwards what they were, also where merged ones took their place.
        """
        attempt, model = self.attempt, self.attempt.model
        before = self._untrained()  # the frozen weights may hold merged ones later
        attach_state(model, self.merging)
        try:
            attempt.method.finish(model)
            began = time.perf_counter()
            tasks = self.tasks()
            seconds = time.perf_counter() - began
            probe = self._probe(before)
            reach("cell.evaluated")
            parameters = max(0, stored_count(model) - stored_count(attempt.backbone.model))
        finally:
            self._put_back()
        notes: Notes = {} if self.merging.note is None else {"merging": self.merging.note}
        return Scored(tasks=tasks, probe=probe, seconds=seconds, parameters=parameters, notes=notes)

    def _put_back(self) -> None:
        if self.merging.how == "copies":
            return
        try:
            self.merging.undo(self.attempt.model)
        except BaseException:
            self.around.bench.drop_backbones()  # some weights hold what was merged: later cells load them again
            raise

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

    def _untrained(self) -> Mapping[str, TaskScore]:
        """Scores of the probe tasks by the untrained backbone."""
        attempt, lm_tasks = self.attempt, self.attempt.prepared.probe
        if not lm_tasks:
            return {}
        return self.around.bench.untrained(attempt.cell, lambda: self._score(attempt.backbone.fresh(), lm_tasks).scores)

    def _probe(self, before: Mapping[str, TaskScore]) -> ProbeEvaluation:
        """The probe tasks, by the untrained backbone (``before``) and by the trained model.

        A method whose output depends on the task id has parameters for the tasks it trained only. Which of them would
        answer for another task is the method's to say, and no method says it: its probe has a reason instead.
        """
        attempt, lm_tasks = self.attempt, self.attempt.prepared.probe
        if not lm_tasks:
            return ProbeEvaluation()
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
        """Score tasks; where memory runs out, again without copies of merged weights, and then with half the tokens at
        once, until one row is left.

        The longest rows come first, so that little is computed twice.
        """
        device = self.around.bench.device
        while True:
            try:
                with self.around.ranks.in_step(model), forgotten_on_failure(model):
                    return self._evaluate(model, lm_tasks, None if every_row else self.attempt.cell.protocol.eval_rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.token_budget == 1:
                    raise
            free_memory(device)
            compact = model is self.attempt.model and device.type != "cpu" and self.merging.merged
            if compact and self.merging.make_room(model):
                logger.warning("memory ran out in evaluation: merged weights take no room of their own from here on")
                continue
            self.token_budget //= 2
            logger.warning("memory ran out in evaluation: %d tokens at once from here on", self.token_budget)

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
            known=attempt.prepared.requests,
        )

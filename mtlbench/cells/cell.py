"""One cell from names to record: attach, fit, save, finish, evaluate, guard. Never raises but to end the worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from mtlbench.api.cell import Cell
from mtlbench.api.record import Costs, Disturbances, Notes, Provenance, Record
from mtlbench.backbones.backbone import Backbone
from mtlbench.backbones.checksum import sums_by_name
from mtlbench.backbones.machine import free_memory, tf32_products
from mtlbench.cells import guards
from mtlbench.cells.attempt import CellAttempt, TrainingContext
from mtlbench.cells.bench import Bench, token_budget
from mtlbench.cells.cost import Peak, folder_bytes, pruned_count, trainable_count, training_costs
from mtlbench.cells.failure import GuardError, check_others, failure_of, lost_unseen, refusal
from mtlbench.cells.provenance import backbone_notes, inherited, notes_of, provenance_of
from mtlbench.cells.scoring import Scorer
from mtlbench.distributed.ranks import ALONE, Ranks
from mtlbench.files.failpoints import reach
from mtlbench.files.stop_request import Stopped, StopRequest
from mtlbench.observers.events import Events
from mtlbench.planning.sources import check_sources, commits_of
from mtlbench.store import RunFolder
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Batch, collator_of
from mtlbench.training.checkpoints.model_state import Unusable
from mtlbench.training.checkpoints.recovery import EVERY_S
from mtlbench.training.checkpoints.state import (
    load_adapter,
    save_adapter,
    saved_names,
    shrink,
    trainable_names,
)
from mtlbench.training.splits import Splits

__all__ = ["Bench", "run_cell"]

logger = logging.getLogger(__name__)


def run_cell(
    cell: Cell,
    *,
    bench: Bench,
    folder: RunFolder,
    events: Events,
    stop: StopRequest | None = None,
    checkpoint_s: float = EVERY_S,
    ranks: Ranks = ALONE,
) -> Record:
    """The record of a cell: ``ok``, ``skipped`` with the reason, or ``failed`` with a class and a next step.

    Training is resumed from the checkpoint of an earlier attempt where there is one. When ``stop`` is asked, training
    ends after its step with a checkpoint. Where ``ranks`` share the training, this is the first of them.

    Raises:
        Stopped: the worker was asked to end.
        DeviceBusy: memory ran out before the first step, as other programs hold that of the device.
    """
    started = time.time()
    around = TrainingContext(
        bench=bench,
        folder=folder,
        stop=StopRequest() if stop is None else stop,
        checkpoint_s=checkpoint_s,
        ranks=ranks,
    )
    run = _Run(cell, around, events=events)
    try:
        check_sources(cell)
        with tf32_products(cell.protocol.tf32):
            try:
                record = run.record()
            except Unusable as error:
                run.forget(str(error))
                record = run.record()
    except Stopped:
        raise
    except (Exception, SystemExit) as error:
        logger.exception("cell %s (%s) failed", cell.key, cell.variant)
        if (unseen := lost_unseen(bench.device)) is None:
            check_others(error, bench.device, steps=run.steps)
        failure = failure_of(unseen or error, cell, kind="device" if unseen else None)
        record = Record(cell=cell, status="failed", failure=failure)
    provenance: Provenance = {**provenance_of(bench), **record.provenance, **run.disturbances()}
    run.attempt = run.scorer = None
    if record.failure is None or record.failure.kind != "device":
        if record.status == "failed":
            if ranks.sharded:  # sums over shards need all processes, and after a failure the others may be elsewhere
                bench.drop_backbones()
            else:
                bench.drop_if_changed()
        free_memory(bench.device)
    if commits := commits_of(cell.plugins):
        provenance["plugin_commits"] = commits
    if ranks.size > 1:
        provenance["processes"] = ranks.size
    if ranks.size > 1 and ranks.sharded:
        provenance["shards"] = ranks.size
    provenance |= {"started": started, "finished": time.time()}
    return replace(record, provenance=provenance)


def run_along(cell: Cell, around: TrainingContext) -> None:
    """What :func:`run_cell` does, in another process than the first: of a sharded backbone all run every layer.

    Nothing is written.

    Raises:
        Stopped: the worker was asked to end.
    """
    run = _Along(cell, around, events=Events({}))
    try:
        run.record()
    except Unusable:
        # the first process removes the checkpoints
        run.record()


@dataclass
class _Run:
    """The stages of one cell, in the order of :meth:`record`."""

    cell: Cell
    around: TrainingContext
    events: Events
    checks: dict[str, bool] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Why earlier checkpoints were not used."""
    begun: float = field(default_factory=time.perf_counter)
    attempt: CellAttempt | None = None
    scorer: Scorer | None = None

    @property
    def bench(self) -> Bench:
        return self.around.bench

    @property
    def steps(self) -> int:
        """Steps done, in earlier attempts too."""
        return self.attempt.loop.progress.steps if self.attempt is not None else 0

    @property
    def folder(self) -> RunFolder:
        return self.around.folder

    def record(self) -> Record:
        cell = self.cell
        self.checks = {}
        attempt = self.attempt = CellAttempt(
            cell, self.around, on_step=self._stepped, metric=self._metric, begun=self.begun
        )
        scorer = self.scorer = Scorer(attempt, self.around)
        reason = attempt.attach()
        if reason is not None:
            return Record(cell=cell, status="skipped", failure=refusal(reason))
        model, backbone, method, routing = attempt.model, attempt.backbone, attempt.method, attempt.routing
        attached = trainable_count(model)
        limits = backbone_notes(model, backbone, requested=cell.protocol.attention)
        sample = self._sample(attempt.splits, backbone)
        before = sums_by_name(_trained(model))
        if method.identity_at_start:
            stock = guards.label_logits(backbone.fresh(), sample, routing)
            self._check("equal_to_backbone_at_start", self._same(stock, guards.label_logits(model, sample, routing)))
        planned = attempt.planned_steps() if before else 0
        self.events.training_planned(cell, planned, attempt.done_before())
        attempt.fit(trains=bool(before))
        peak = attempt.peak()
        model.eval()
        trainable = trainable_count(model) - pruned_count(model)
        if before:
            self._check("trained", guards.trained(before, sums_by_name(_trained(model))))
            self._reload(attempt, sample)
        free_memory(self.bench.device)
        reach("cell.saved")
        scored = scorer.run()
        self._check("backbone_unchanged", guards.backbone_unchanged(backbone))
        if self.around.ranks.first:
            # With the key, the files of many cells can be read as one table.
            samples = [*scored.tasks.samples, *scored.probe.samples]
            self.folder.put_samples(cell.key, [{"key": cell.key, **sample} for sample in samples])
        done, base = attempt.loop.progress, attempt.base
        provenance = self._provenance(backbone)
        if base is not None:
            provenance["trained_in"] = base.key
        return Record(
            cell=cell,
            status="ok",
            scores=scored.tasks.scores,
            probe=scored.probe.scores,
            costs=Costs(
                trainable_parameters=trainable,
                backbone_parameters=backbone.parameters,
                inference_parameters=scored.parameters,
                eval_seconds=scored.seconds,
                **training_costs(done, None if base is None else base.costs, seconds=attempt.seconds()),
                adapter_bytes=folder_bytes(self.folder.adapter(cell.key)),
                **_peak_fields(peak),
            ),
            guards=self.checks,
            notes={
                **notes_of(
                    model,
                    done,
                    cell.tasks,
                    attached=attached,
                    checks=attempt.prepared.checks,
                    stop=attempt.splits.stop,
                ),
                **(inherited(base) if base is not None else {}),
                **limits,
                **_chat_note(attempt.prepared.chat),
                **scored.notes,
            },
            provenance={**provenance, "cached_rows": attempt.prepared.cached},
        )

    def _provenance(self, backbone: Backbone) -> Provenance:
        """What was trained on: backbone, dtype, protocol, revisions of the data."""
        provenance: Provenance = {
            "backbone_fingerprint": backbone.fingerprint,
            "dtype": str(self.bench.dtypes(self.cell)[0]),
            "protocol_hash": self.cell.protocol.hash(),
        }
        if revisions := self.bench.revisions(self.cell):
            provenance["data_revisions"] = dict(revisions)
        return provenance

    def forget(self, reason: str) -> None:
        """Start from zero the next time, without checkpoints."""
        logger.warning("cell %s starts from zero: %s", self.cell.key, reason)
        self.folder.drop_checkpoints(self.cell.key)
        earlier = self.attempt.recovery.problems if self.attempt is not None else []
        self.problems += [*earlier, f"started from zero: {reason}"]
        self.attempt = None

    def disturbances(self) -> Disturbances:
        """What the record says of attempts, checkpoints and memory; nothing when all went undisturbed."""
        disturbances: Disturbances = self.attempt.disturbances() if self.attempt is not None else {}
        if self.problems:
            disturbances["checkpoint_problems"] = [*self.problems, *disturbances.get("checkpoint_problems", [])]
        if self.scorer is not None and self.scorer.token_budget < token_budget(self.bench.device):
            disturbances["eval_tokens_per_batch"] = self.scorer.token_budget
        return disturbances

    def _metric(self, rows: Sequence[TokenRow]) -> float:
        assert self.scorer is not None
        return self.scorer.metric(rows)

    def _stepped(self, step: int, losses: torch.Tensor, tasks: torch.Tensor) -> None:
        reach("cell.step")
        self.events.step_finished(self.cell, step + 1, losses, tasks)

    def _sample(self, splits: Splits, backbone: Backbone) -> Batch:
        """One short row of each task, at most eight, for the checks."""
        shortest = {row.task: row for row in sorted(splits.train, key=lambda row: row.length, reverse=True)}
        return collator_of(backbone, self.bench.device).padded(list(shortest.values())[:8])

    def _reload(self, attempt: CellAttempt, sample: Batch) -> None:
        """Save the adapter, read it into a fresh copy, and compare."""
        path, model, setup, routing = self.folder.adapter(self.cell.key), attempt.model, attempt.setup, attempt.routing
        rows = [task.train_rows for task in setup.tasks]
        extra = {"cell": self.cell.to_json(), "train_rows": rows, "total_steps": setup.total_steps}
        ranks = self.around.ranks
        ranks.first_then_others(
            lambda: save_adapter(model, path, extra) if ranks.first else path, digest=lambda path: None
        )
        again = attempt.backbone.fresh()
        attempt.method.attach(again, setup)
        shrink(again, saved_names(path))
        self._check("keys_equal", guards.same_names(trainable_names(again), trainable_names(model), saved_names(path)))
        load_adapter(again, path)
        logits = guards.label_logits(again, sample, routing)
        self._check("reloaded_equal", self._same(guards.label_logits(model, sample, routing), logits))

    def _same(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        return guards.same_logits(one, other, tolerance=guards.TOLERANCE[self.bench.dtypes(self.cell)[0]])

    def _check(self, name: str, held: bool) -> None:
        self.checks[name] = held
        if not held:
            raise GuardError(f"the check {name!r} did not hold for {self.cell.variant}: {guards.MEANING[name]}")


class _Along(_Run):
    """The same in a process that is not the first."""

    def _stepped(self, step: int, losses: torch.Tensor, tasks: torch.Tensor) -> None:
        reach("rank.step")


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _chat_note(chat: str) -> Notes:
    return {"chat_template": chat} if chat else {}


def _peak_fields(peak: Peak) -> dict[str, Any]:
    return {"peak_memory": peak.amount, "peak_memory_kind": peak.kind}

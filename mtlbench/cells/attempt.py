"""One attempt at training a cell: what it needs is got ready, the method attached and fitted, its cost added up."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypedDict, cast

from torch import nn

from mtlbench.api.cell import Cell
from mtlbench.api.method import Method, Setup
from mtlbench.api.record import Disturbances, Record
from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import Backbone
from mtlbench.backbones.machine import axis_seed, free_memory
from mtlbench.backbones.quantization import check_methods, label_of
from mtlbench.cells.bench import Bench, Prepared
from mtlbench.cells.cost import Peak, read_peak, reset_peak
from mtlbench.cells.identity import training_identity
from mtlbench.cells.rebuild import setup_of
from mtlbench.distributed.ranks import ALONE, Ranks
from mtlbench.errors import RequestError
from mtlbench.files.failpoints import reach
from mtlbench.files.stop_request import StopRequest
from mtlbench.planning.built_on import base_of
from mtlbench.planning.settings import build
from mtlbench.store import RunFolder
from mtlbench.training.batches import collator_of
from mtlbench.training.checkpoints.checkpoint import CheckpointStore
from mtlbench.training.checkpoints.recovery import EVERY_S, CheckpointPolicy
from mtlbench.training.checkpoints.state import load_adapter
from mtlbench.training.loop import Loop, Metric, OnStep, TrainingJob
from mtlbench.training.splits import Splits, budget_steps, carve, phases


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """Where cells are trained."""

    bench: Bench
    folder: RunFolder
    stop: StopRequest
    checkpoint_s: float = EVERY_S
    """Seconds between two checkpoints."""
    ranks: Ranks = ALONE
    """The processes that share the training."""


class EarlierAttempts(TypedDict):
    """What a checkpoint says of the training up to it, beside the state of training."""

    steps: int
    seconds: float
    peak: int | None
    """Highest memory so far, in bytes."""
    attempts: int
    resumed_from_step: list[int]


class CellAttempt:
    """A cell on the way through its training, resumed from the checkpoint of an earlier attempt where there is one.

    Args:
        on_step: As :class:`~mtlbench.training.loop.Loop` has it.
        metric: As :class:`~mtlbench.training.loop.TrainingJob` has it, used where the protocol selects by metric.
        begun: When the cell was begun, in seconds of the performance counter.

    Raises:
        MtlbenchError: something that the cell needs is not there or changed.
    """

    def __init__(self, cell: Cell, around: TrainingContext, *, on_step: OnStep, metric: Metric, begun: float) -> None:
        self.cell, self._around, self._begun = cell, around, begun
        self._was_reset = False
        bench = around.bench
        reach("cell.started")
        self.method: Method = build(cell.method, cell.settings)
        self.backbone: Backbone = bench.backbone(cell)
        self.prepared: Prepared = bench.prepared(cell, self.backbone)
        reach("cell.prepared")
        self.splits: Splits = carve(self.prepared.rows, held_out=cell.protocol.held_out, seed=self._seed("split"))
        self.routing = Routing()
        self.model: nn.Module = self.backbone.fresh()
        self.recovery = self._recovery()
        self.base = self._base()
        """The record of the cell whose training this one takes over, where its method is built on another's."""
        self._first, *self._later = phases(self.splits, cell.protocol)
        self.loop = self._loop(on_step, metric)

    @cached_property
    def setup(self) -> Setup:
        """What the method knows of the cell when it is attached."""
        counts = [0] * len(self.prepared.tasks)
        for row in self.splits.train:
            counts[row.task] += 1
        return setup_of(
            self.model,
            self.cell,
            architecture=self.backbone.architecture,
            train_rows=counts,
            total_steps=self.loop.total_steps,
            routing=self.routing,
            tokenizer=self.backbone.tokenizer,
        )

    def attach(self) -> str | None:
        """Attach the method, or say why it cannot be."""
        setup = self.setup
        # an attempt whose checkpoint did not fit, or a process that only trained along, may have left its model
        free_memory(self._around.bench.device)
        self._was_reset = reset_peak(self._around.bench.device)
        reason = self.method.refuse(setup)
        if reason is not None:
            return reason
        try:
            if self.backbone.quantized:
                label = label_of(self.cell.protocol.quantize, vars(self.model.config)) or ""
                check_methods(self.cell.model, label, [(self.cell.method, self.method.supports_quantized)])
            self.method.attach(self.model, setup)
        except RequestError as error:
            return str(error)
        except Exception as error:
            if (reason := self._unfit(error)) is None:
                raise
            return reason
        reach("cell.attached")
        return self._unfit()

    def _unfit(self, error: Exception | None = None) -> str | None:
        """Why the method cannot train a backbone of which each process keeps a part."""
        if not self._around.ranks.sharded:
            return None
        from mtlbench.distributed.shards_fit import unfit, unfit_error

        reason = unfit(self.model) if error is None else unfit_error(error)
        if reason is None:
            return None
        return f"{self.method.name!r} cannot be sharded: {reason}. Leave --shard out of the command that runs it."

    def planned_steps(self) -> int:
        """Steps of the budgets; none where another cell's training is taken over."""
        return 0 if self.base is not None else sum(budget_steps(*phase) for phase in (self._first, *self._later))

    def fit(self, *, trains: bool) -> None:
        """Train through all phases; later ones only where the method ``trains`` anything."""
        self.method.fit(self.model, self.loop)
        for phase in self._later if trains else []:
            self.loop.turn_to(*phase)
            self.method.adapt(self.model, self.loop)
        reach("cell.trained")

    # What it cost, earlier attempts included

    def disturbances(self) -> Disturbances:
        """What the record says of attempts, checkpoints and memory; nothing when all went undisturbed."""
        disturbances: Disturbances = {}
        before = self._before()
        if before:
            disturbances["attempts"] = before["attempts"] + 1
            disturbances["resumed_from_step"] = [*before["resumed_from_step"], before["steps"]]
        if self.recovery.problems:
            disturbances["checkpoint_problems"] = list(self.recovery.problems)
        if changes := self.loop.progress.micro_batches:
            disturbances["micro_batch"] = [{"after_step": step, "rows": rows} for step, rows in changes]
        return disturbances

    def seconds(self) -> float:
        """Of this attempt, and of earlier ones up to the checkpoints that were resumed from."""
        before = self._before()
        return (before["seconds"] if before else 0.0) + time.perf_counter() - self._begun

    def peak(self) -> Peak:
        """Of all attempts."""
        peak = read_peak(self._around.bench.device, was_reset=self._was_reset)
        before = self._before()
        earlier = before["peak"] if before else None
        return peak if earlier is None or peak.amount is None else replace(peak, amount=max(peak.amount, earlier))

    def done_before(self) -> int:
        """Steps of earlier attempts up to the checkpoint that this one is resumed from."""
        before = self._before()
        return before["steps"] if before else 0

    def _before(self) -> EarlierAttempts | None:
        return cast(EarlierAttempts, self.recovery.before) if self.recovery.before else None

    def _about(self) -> EarlierAttempts:
        """What a checkpoint says beside the state of training: how far it is, and what attempts so far cost."""
        before = self._before()
        resumed = [*before["resumed_from_step"], before["steps"]] if before else []
        return {
            "steps": self.loop.progress.steps,
            "seconds": self.seconds(),
            "peak": self.peak().amount,
            "attempts": len(resumed) + 1,
            "resumed_from_step": resumed,
        }

    # How it is made

    def _seed(self, axis: str) -> int:
        return axis_seed(self.cell.seed, axis)

    def _base(self) -> Record | None:
        if self.method.built_on is None:
            return None
        folder = self._around.folder
        done = {
            key: record
            for key, record in folder.records().items()
            if record.status == "ok" and folder.adapter(key).is_dir()
        }
        base = base_of(self.cell, [record.cell for record in done.values()])
        return None if base is None else done[base.key]

    def _inherit(self) -> bool:
        """Read the adapter of ``base`` into the model.

        Raises:
            StoreError: it is not the one that was recorded, or does not fit.
        """
        if self.base is None:
            return False
        load_adapter(self.model, self._around.folder.checked_adapter(self.base))
        return True

    def _recovery(self) -> CheckpointPolicy:
        around, ranks = self._around, self._around.ranks
        identity = training_identity(
            self.cell,
            self.method,
            self.backbone,
            device=around.bench.device,
            dtypes=around.bench.dtypes(self.cell),
            processes=ranks.size,
        )
        files = CheckpointStore(around.folder.checkpoints(self.cell.key), identity=identity)

        def look() -> CheckpointPolicy:
            return CheckpointPolicy(
                files if self.method.resumes() else None,
                stop=around.stop,
                every_s=around.checkpoint_s,
                writes=ranks.first,
                about=self._about,
            )

        # The first process may have removed checkpoints that did not fit: the others look when it is through.
        return ranks.first_then_others(look, digest=lambda recovery: recovery.goes_on_from)

    def _loop(self, on_step: OnStep, metric: Metric) -> Loop:
        around, backbone = self._around, self.backbone
        job = TrainingJob(
            model=self.model,
            method=self.method,
            splits=self._first[0],
            protocol=self.cell.protocol,
            tasks=len(self.cell.tasks),
            routing=self.routing,
            collator=collator_of(backbone, around.bench.device),
            seed=self.cell.seed,
            autocast=around.bench.dtypes(self.cell)[1],
            metric=metric if self.cell.protocol.select_by == "metric" else None,
            inherit=self._inherit,
        )
        return Loop(job, on_step=on_step, recovery=self.recovery, ranks=around.ranks)

"""What one worker keeps warm between cells: the measured device, loaded backbones, tokenised tasks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.executor import DEVICE_WHY
from mtlbench.api.record import TaskScore
from mtlbench.api.row_checks import RowCheck
from mtlbench.api.task import Task
from mtlbench.backbones.backbone import Backbone, load_backbone
from mtlbench.backbones.loaded import check_rows_fit
from mtlbench.backbones.machine import (
    Machine,
    axis_seed,
    choose_dtype,
    is_out_of_memory,
    keep_to_share,
    no_gpu_why,
    probe,
    unfit,
)
from mtlbench.backbones.names import found_model
from mtlbench.cells import guards
from mtlbench.cells.failure import lost
from mtlbench.data.choose import open_source
from mtlbench.data.examples import evaluation_golds
from mtlbench.data.from_train import splits_under
from mtlbench.data.k_shot import chosen_rows
from mtlbench.data.lm_task import choose_rows, load_lm_task
from mtlbench.data.source import Source, find_task
from mtlbench.errors import DataError, DeviceBusy, RequestError
from mtlbench.plugins import load_suite
from mtlbench.text import one_line
from mtlbench.tokens.cache import Tokenised
from mtlbench.tokens.chat import ChatPrompts
from mtlbench.tokens.encode import TokenRow
from mtlbench.tokens.facts import RowFacts, counts_of
from mtlbench.tokens.requests import RequestTokens

if TYPE_CHECKING:
    from mtlbench.compat import ConfigurableTask
    from mtlbench.distributed.shards import Sharding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The tasks of a cell, ready for training and evaluation."""

    tasks: Mapping[str, Task]
    """Full task name to task; the order gives the task ids."""
    lm_tasks: Mapping[str, ConfigurableTask]
    rows: Sequence[TokenRow]
    """Training rows of all tasks."""
    checks: Mapping[str, RowCheck]
    """Full name of each task, probe tasks included, to what was counted of its rows."""
    cached: int = 0
    """Rows whose tokens were read from the cache on disk."""
    probe: Mapping[str, ConfigurableTask] = field(default_factory=dict)
    """The tasks that are scored before and after training; no row of them is trained on."""
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Full name of each task, probe tasks included, to the metrics of its score."""
    requests: RequestTokens = field(default_factory=RequestTokens)
    """Tokens of the requests of the evaluation examples."""
    chat: str = ""
    """What the chat template does not allow, where one is applied."""


class Bench:
    """What stays warm between the cells of one worker.

    Args:
        device: ``auto`` (an accelerator where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads; ``None`` leaves torch's choice.
        data: ``demo``, ``hub`` or a folder.
        sharding: The processes that keep a part of each backbone; ``None`` where every process keeps all.
        places: Folders where the local backbone of a cell may be, if not where the cell says.
    """

    def __init__(
        self,
        *,
        device: str,
        threads: int | None,
        data: str,
        sharding: Sharding | None = None,
        places: Callable[[Cell], Sequence[str]] = lambda cell: (),
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.device = torch.device(name)
        self.device_why = no_gpu_why() if device == "auto" and name == "cpu" else os.environ.get(DEVICE_WHY)
        """Why the processor was taken although the system shows a GPU."""
        if self.device_why is not None:
            logger.warning("a GPU is not used: %s", self.device_why)
        self.workers_per_device = keep_to_share(self.device)
        self.machine: Machine = _measured(self.device)
        self.sharding = sharding
        self._data = data
        self._places = places
        self._backbones: dict[tuple[str, str, str, torch.dtype], Backbone] = {}
        self._refused: dict[tuple[str, str, str, torch.dtype], str] = {}
        """Why a backbone cannot be used: it is not read again for each cell."""
        self.dropped = False
        """Whether backbones were dropped since this was last set to false: other processes of a cell must follow."""
        self._prepared: dict[tuple[Any, ...], Prepared] = {}
        self._lm_tasks: dict[tuple[Any, ...], tuple[dict[str, Task], dict[str, ConfigurableTask]]] = {}
        self._revisions: dict[tuple[str, ...], Mapping[str, str]] = {}
        self._untrained: dict[tuple[Any, ...], Mapping[str, TaskScore]] = {}

    def dtypes(self, cell: Cell) -> tuple[torch.dtype, torch.dtype | None]:
        """Dtype of the frozen weights, and of autocast where it is on."""
        chosen = choose_dtype(cell.protocol.dtype, self.machine)
        return chosen, None if chosen is torch.float32 else chosen

    def backbone(self, cell: Cell) -> Backbone:
        """The frozen backbone of a cell, loaded once. Another backbone replaces it: one is held at a time.

        Raises:
            DataError: its files changed since the cell was planned.
        """
        dtype, _ = self.dtypes(cell)
        key = (cell.model, cell.protocol.attention, cell.protocol.quantize, dtype)
        if key not in self._backbones:
            where = found_model(cell, self._places(cell))
            if where is None:
                raise DataError(
                    f"The backbone {cell.model!r} changed since this cell was planned. Start the same command again to "
                    "plan with what is there."
                )
            if key in self._refused:
                raise RequestError(self._refused[key])
            self._backbones.clear()
            try:
                self._backbones[key] = self._load(where, cell.protocol, dtype=dtype)
            except RequestError as error:
                self._refused[key] = str(error)
                raise
        check_rows_fit(cell.model, self._backbones[key].model, max_length=cell.protocol.max_length)
        return self._backbones[key]

    def drop_if_changed(self) -> None:
        """Drop backbones of which a frozen weight was written to: the next cell loads a whole one."""
        if not all(guards.backbone_unchanged(backbone) for backbone in self._backbones.values()):
            logger.warning("a frozen weight was written to: the next cell loads the backbone again")
            self.drop_backbones()

    def drop_backbones(self) -> None:
        """Load backbones again for the next cell, which ``dropped`` says."""
        self._backbones.clear()
        self.dropped = True

    def _load(self, name: str, protocol: Protocol, *, dtype: torch.dtype) -> Backbone:
        attention = protocol.attention
        if self.sharding is None:
            return load_backbone(name, dtype=dtype, attention=attention, device=self.device, quantize=protocol.quantize)
        from mtlbench.distributed.shards import load_sharded

        return load_sharded(name, dtype=dtype, attention=attention, sharding=self.sharding)

    def prepared(self, cell: Cell, backbone: Backbone) -> Prepared:
        """The tasks of a cell, read and tokenised once.

        Raises:
            DataError: rows are missing, changed since the cell was planned, or not shaped as the task needs.
            RequestError: the tokenizer has no chat template, which the protocol needs.
        """
        protocol = cell.protocol
        key = (
            cell.tasks, protocol.data, cell.model, protocol.max_length, protocol.train_rows, protocol.eval_from_train,
            protocol.holdout, protocol.k_shot, protocol.sources, cell.seed if protocol.k_shot else None,
            protocol.chat_template, protocol.eval_rows, protocol.probe,
        )  # fmt: skip
        if key not in self._prepared:
            every_task, every_lm_task = self._tasks(cell)
            tasks = {name: every_task[name] for name in cell.tasks}
            lm_tasks = {name: every_lm_task[name] for name in cell.tasks}
            rows: list[TokenRow] = []
            questions: set[int] = set()
            checks: dict[str, RowCheck] = {}
            tokenised = Tokenised(backbone)
            chat = ChatPrompts(backbone.tokenizer) if protocol.chat_template else None
            for index, (name, lm_task) in enumerate(lm_tasks.items()):
                evaluated = choose_rows(len(lm_task.validation_docs()), protocol.eval_rows)
                evaluation_golds(lm_task, evaluated)  # labels
                shots = "" if name in protocol.source_tasks else protocol.k_shot
                draw = axis_seed(axis_seed(cell.seed, "split"), f"k-shot/{name}")
                wanted = chosen_rows(lm_task, limit=protocol.train_rows, k_shot=shots, seed=draw)
                length = protocol.max_length
                trained, facts = tokenised.training(
                    tasks[name], lm_task, wanted, index=index, max_length=length, chat=chat
                )
                scored = (
                    tokenised.evaluation(tasks[name], lm_task, evaluated, max_length=length, chat=chat)
                    if name in cell.scored
                    else None
                )
                rows += trained
                checks[name] = _check_of(facts, scored)
                questions |= {row.question for row in facts} if protocol.probe else set()
                logger.info("%s: %d training rows", name, len(wanted))
            probed = {name: every_lm_task[name] for name in protocol.probe_tasks}
            for name, lm_task in probed.items():
                evaluated = choose_rows(len(lm_task.validation_docs()), protocol.eval_rows)
                evaluation_golds(lm_task, evaluated)  # labels
                scored = tokenised.evaluation(
                    every_task[name], lm_task, evaluated, max_length=protocol.max_length, chat=chat
                )
                repeated = sum(row.question in questions for row in scored)
                checks[name] = RowCheck(train=counts_of(()), evaluation=counts_of(scored), repeated=repeated)
            for name, check in checks.items():
                for sentence in check.sentences(name, max_length=protocol.max_length) if check.warns else ():
                    logger.warning("%s", sentence)
            self._prepared[key] = Prepared(
                tasks=tasks,
                lm_tasks=lm_tasks,
                rows=rows,
                checks=checks,
                cached=tokenised.cached,
                requests=tokenised.requests,
                probe=probed,
                metrics={name: task.metrics for name, task in every_task.items()},
                chat="" if chat is None or chat.takes_system else "no system turn, which the template refuses",
            )
        return self._prepared[key]

    def revisions(self, cell: Cell) -> Mapping[str, str]:
        """Data set to its revision on the hub, where that is known; once the cell is :meth:`prepared`."""
        return self._revisions.get(_read(cell), {})

    def untrained(self, cell: Cell, evaluate: Callable[[], dict[str, TaskScore]]) -> Mapping[str, TaskScore]:
        """The scores of the untrained backbone on the probe tasks, evaluated once for all methods and seeds."""
        key = (cell.model, cell.weights, cell.tasks, cell.protocol.hash())
        if key not in self._untrained:
            self._untrained[key] = evaluate()
        return self._untrained[key]

    def _tasks(self, cell: Cell) -> tuple[dict[str, Task], dict[str, ConfigurableTask]]:
        """The tasks that are trained, scored or probed."""
        protocol = cell.protocol
        share = protocol.eval_from_train
        read = _read(cell)
        key = (read, protocol.data, protocol.holdout, share, protocol.train_rows if share else None)
        if key not in self._lm_tasks:
            suites = {name: load_suite(name) for name in dict.fromkeys(t.partition("/")[0] for t in read)}
            tasks = {name: find_task(suites, name) for name in read}
            source = open_source(self._data, suites=suites)
            _same_data(source, list(tasks.values()), cell)
            self._revisions[read] = dict(source.revisions(list(tasks.values())))
            lm_tasks = {}
            for name, task in tasks.items():
                lm_tasks[name] = load_lm_task(task, splits_under(task, source.splits(task), protocol), name=name)
            self._lm_tasks[key] = (tasks, lm_tasks)
        return self._lm_tasks[key]


def _read(cell: Cell) -> tuple[str, ...]:
    """The tasks whose data the cell reads."""
    return (*cell.tasks, *cell.protocol.probe_tasks)


def _measured(device: torch.device) -> Machine:
    """The speed of the device.

    Raises:
        RequestError: this torch cannot compute on it.
        DeviceBusy: other programs hold its memory, or it is in their exclusive use.
    """
    try:
        return probe(device)
    except (RuntimeError, AssertionError) as error:
        if (reason := unfit(error)) is not None:
            raise RequestError(f"--device {device}: {reason}") from error
        if is_out_of_memory(error) or lost(error) is not None:
            raise DeviceBusy(f"the device cannot be used now: {one_line(str(error))}") from error
        raise


def _check_of(trained: Sequence[RowFacts], scored: Sequence[RowFacts] | None) -> RowCheck:
    if scored is None:
        return RowCheck(train=counts_of(trained))
    asked = {facts.question for facts in trained}
    repeated = sum(facts.question in asked for facts in scored)
    return RowCheck(train=counts_of(trained), evaluation=counts_of(scored), repeated=repeated)


def _same_data(source: Source, tasks: Sequence[Task], cell: Cell) -> None:
    """Rows that changed between planning and running would be counted under the wrong identity."""
    present = source.identity(tasks)
    if present != cell.protocol.data:
        raise DataError(
            f"The data changed since this cell was planned: it was {cell.protocol.data}, now it is {present}. "
            "Start the same command again to plan with the data that is there."
        )


def token_budget(device: torch.device) -> int:
    """Rows x length of an evaluation batch: small enough for a CPU's caches, large enough to fill an accelerator."""
    return 1024 if device.type == "cpu" else 32768

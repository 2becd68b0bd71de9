"""Time and memory of training and inference of one method; the device is synchronised around each timing."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.method import Method, Setup
from mtlbench.api.routing import Routing
from mtlbench.backbones.backbone import Backbone, stored_count
from mtlbench.cells.cost import folder_bytes, read_peak, reset_peak, trainable_count
from mtlbench.cells.rebuild import setup_of
from mtlbench.errors import RequestError
from mtlbench.measuring.conditions import device_memory, joules, synchronize
from mtlbench.measuring.flops import analytic_flops, counted_flops, gradient_step
from mtlbench.measuring.models import measured_rows
from mtlbench.measuring.records import MeasuredInference, MeasuredTraining, Percentiles
from mtlbench.measuring.request import MeasureRow
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Batch, collator_of
from mtlbench.training.checkpoints.state import save_adapter
from mtlbench.training.gradients import Gradients
from mtlbench.training.loop import Loop, TrainingJob
from mtlbench.training.objective import objective_of
from mtlbench.training.splits import Splits

REPEATS = 30
"""Timed forward passes."""
NEW_TOKENS = 16


@dataclass
class MeasuredMethod:
    """One method on one backbone."""

    row: MeasureRow
    method: Method
    backbone: Backbone
    device: torch.device
    autocast: torch.dtype | None

    def attached(self, *, tasks: int) -> tuple[nn.Module, Setup]:
        """A new copy of the backbone with the method attached for ``tasks`` tasks.

        Raises:
            RequestError: the method refuses this backbone.
        """
        model, routing = self.backbone.fresh(), Routing()
        cell = Cell(
            method=self.row.method,
            settings=self.row.settings,
            tasks=tuple(f"measure/{task}" for task in range(tasks)),
            model=self.row.model,
            protocol=self.protocol,
            seed=self.row.seed,
        )
        setup = setup_of(
            model,
            cell,
            architecture=self.backbone.architecture,
            train_rows=[100] * tasks,
            total_steps=self.row.warmup + self.row.steps,
            routing=routing,
            tokenizer=self.backbone.tokenizer,
        )
        reason = self.method.refuse(setup)
        if reason is not None:
            raise RequestError(reason)
        self.method.attach(model, setup)
        return model, setup

    @property
    def protocol(self) -> Protocol:
        return Protocol(
            max_length=self.row.longest,
            steps=self.row.warmup + self.row.steps,
            batch_size=self.row.batch_size,
            evals_per_run=0,
            checkpointing=self.row.checkpointing,
        )

    def rows(self, count: int) -> list[TokenRow]:
        """Random rows within the backbone's vocabulary."""
        vocabulary = self.backbone.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        return measured_rows(self.row, vocabulary=vocabulary, count=count)

    def batch(self, rows: list[TokenRow]) -> Batch:
        apart = 0 if self.method.has_auxiliary_loss else None
        return collator_of(self.backbone, self.device).padded(rows, apart=apart)


class _Clock:
    """Seconds, tokens and energy of the steps after the warm-up."""

    def __init__(self, device: torch.device, *, warmup: int) -> None:
        self.seconds: list[float] = []
        self.loop: Loop | None = None
        self._device, self._left = device, warmup
        self.start()

    def start(self) -> None:
        synchronize(self._device)
        self.tokens = self._tokens()
        self.energy = joules(self._device)
        self._last = time.perf_counter()

    def __call__(self, step: int, losses: Tensor, tasks: Tensor) -> None:
        synchronize(self._device)
        now = time.perf_counter()
        if self._left > 0:
            self._left -= 1
            if self._left == 0:
                self.start()
            return
        self.seconds.append(now - self._last)
        self._last = time.perf_counter()

    def stop(self) -> tuple[int, int, float | None]:
        """Tokens without padding, tokens with padding, and joules since the warm-up."""
        energy, tokens = joules(self._device), self._tokens()
        used = None if energy is None or self.energy is None else energy - self.energy
        return tokens[0] - self.tokens[0], tokens[1] - self.tokens[1], used

    def _tokens(self) -> tuple[int, int]:
        done = self.loop.progress if self.loop else None
        return (done.real_tokens, done.padded_tokens) if done else (0, 0)


def measure_training(subject: MeasuredMethod) -> tuple[MeasuredTraining, nn.Module]:
    """Cost of training, and the trained model. Times in seconds, memory in bytes.

    Runs ``Method.fit`` with the real training loop, so that a method's own search is included as in a run.
    """
    row, device = subject.row, subject.device
    gc.collect()
    before = read_peak(device, was_reset=reset_peak(device)).amount
    model, setup = subject.attached(tasks=row.tasks)
    clock = _Clock(device, warmup=row.warmup)
    rows = subject.rows(max(4 * row.batch_size, 8 * row.tasks))
    job = TrainingJob(
        model=model,
        method=subject.method,
        splits=Splits(rows, [], subject.rows(max(row.batch_size, row.tasks))),
        protocol=subject.protocol,
        tasks=row.tasks,
        routing=setup.routing,
        collator=collator_of(subject.backbone, device),
        seed=row.seed,
        autocast=subject.autocast,
    )
    loop = clock.loop = Loop(job, on_step=clock)
    attached = trainable_count(model)
    clock.start()
    subject.method.fit(model, loop)
    measured: MeasuredTraining = {
        "trainable_parameters": attached,
        "kept_parameters": trainable_count(model),
        "trains": bool(clock.seconds),
    }
    if not clock.seconds:
        return measured, model
    real, padded, energy = clock.stop()
    total = sum(clock.seconds)
    measured["step_seconds"] = percentiles(clock.seconds)
    measured["tokens_per_second"] = real / total
    measured["padded_tokens_per_second"] = padded / total
    peak = read_peak(device, was_reset=before is not None).amount
    measured["memory"] = asdict(device_memory(device, resident=peak))
    measured["memory_before"] = before
    measured["joules_per_step"] = None if energy is None else energy / len(clock.seconds)
    measured["adapter_bytes"] = _adapter_bytes(model)
    batch = subject.batch(rows[: row.batch_size])
    objective = objective_of(subject.method, len(setup.tasks))
    gradients = Gradients(
        model=model, method=subject.method, routing=setup.routing, autocast=subject.autocast, objective=objective
    )
    measured["flops_counted"] = counted_flops(gradient_step(gradients, batch, model))
    measured["flops_backbone"] = analytic_flops(subject.backbone, batch)
    return measured, model


@torch.no_grad()
def measure_inference(subject: MeasuredMethod, model: nn.Module) -> MeasuredInference:
    """Latency of the finished model: prefill of one row and of a batch, and each further generated token."""
    subject.method.finish(model)
    host: Any = model.eval()
    device, row = subject.device, subject.row
    routing = _routing_of(model) or Routing()
    rows = [TokenRow(0, *_texts(r)) for r in subject.rows(row.batch_size)]
    one, many = subject.batch(rows[:1]), subject.batch(rows)
    prompt = percentiles(timed(lambda: forward(subject, host, one, routing), device))
    batch = percentiles(timed(lambda: forward(subject, host, many, routing), device))
    ids = one.inputs["input_ids"]
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def answer(tokens: int) -> None:
        with routing.of(one.tasks), _autocast(subject):
            host.generate(**texts, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=0)

    times = {n: float(np.median(timed(partial(answer, n), device, repeats=5))) for n in (1, NEW_TOKENS)}
    return {
        "added_parameters": max(0, stored_count(model) - stored_count(subject.backbone.model)),
        "prompt_seconds": prompt,
        "batch_seconds": batch,
        "seconds_per_new_token": (times[NEW_TOKENS] - times[1]) / (NEW_TOKENS - 1),
    }


def forward(subject: MeasuredMethod, model: Any, batch: Batch, routing: Routing) -> None:
    """Prefill: logits of the last position."""
    logits = {"logits_to_keep": 1} if subject.backbone.architecture == "causal" else {}
    with torch.no_grad(), routing.of(batch.tasks), _autocast(subject):
        model(**batch.inputs, use_cache=False, **logits)


def timed(act: Callable[[], object], device: torch.device, *, repeats: int = REPEATS, warmup: int = 3) -> list[float]:
    """Seconds of each of ``repeats`` calls, with the device synchronised before and after."""
    seconds = []
    for at in range(warmup + repeats):
        synchronize(device)
        began = time.perf_counter()
        act()
        synchronize(device)
        if at >= warmup:
            seconds.append(time.perf_counter() - began)
    return seconds


def percentiles(seconds: list[float]) -> Percentiles:
    """``p50``, ``p95``, ``p99`` and the count ``n``."""
    p50, p95, p99 = (float(value) for value in np.percentile(seconds, (50, 95, 99)))
    return {"p50": p50, "p95": p95, "p99": p99, "n": len(seconds)}


def _routing_of(model: nn.Module) -> Routing | None:
    return next((r for m in model.modules() if isinstance(r := getattr(m, "routing", None), Routing)), None)


def _texts(row: TokenRow) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return row.context, row.target


def _autocast(subject: MeasuredMethod) -> Any:
    return torch.autocast(subject.device.type, dtype=subject.autocast, enabled=subject.autocast is not None)


def _adapter_bytes(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, Path(folder), {})
        return folder_bytes(Path(folder))

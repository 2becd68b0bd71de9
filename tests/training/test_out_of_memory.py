"""When memory runs out, the same step is taken in smaller parts; training is never repeated for an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import Attempt, Crash, assert_equal, told
from test_train_loop import Squared
from torch import nn

from mtlbench.api.cell import Cell, Protocol
from mtlbench.backbones.machine import NoRoom, is_out_of_memory
from mtlbench.cells.failure import failure_of
from mtlbench.nn.packing import packing_in_flight
from mtlbench.testing import tiny_causal
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench_methods.lora import Lora
from mtlbench_methods.mtl_lora import MtlLora

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


class SmallModel:
    """Builds a model whose last layer has room for ``rows`` rows in training, or where it is scored."""

    def __init__(self, rows: int, *, error: Exception = ERRORS[0], training: bool = True) -> None:
        self.rows, self.error, self.training = rows, error, training
        self.seen: list[int] = []

    def __call__(self, seed: int) -> nn.Module:
        model = tiny_causal(seed)

        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            if module.training == self.training:
                packing = packing_in_flight()
                self.seen.append(len(output) if packing is None else len(packing.starts))
                if self.seen[-1] > self.rows:
                    raise self.error

        model.model.layers[0].register_forward_hook(hook)  # type: ignore[union-attr, index]
        return model


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__ + str(e)[:12])
def test_too_many_rows_end_as_that_micro_batch_does(error: Exception):
    small = SmallModel(4, error=error)
    method = MtlLora(dropout=0.2)
    halved = Attempt(method, build=small).run()
    asked = Attempt(method, changes={"micro_batch": 3}).run()
    assert max(small.seen[2:]) <= 4 and small.seen[0] > 4
    assert halved.loop.progress.micro_batches[-1] == (0, 3)
    halved.loop.progress.micro_batches = []
    assert_equal(halved, asked)
    assert all(torch.equal(halved.losses[step], losses) for step, losses in asked.losses.items())


def test_it_is_the_same_training_as_with_room(tmp_path: Path):
    halved = Attempt(Lora(dropout=0.0), build=SmallModel(1)).run()
    whole = Attempt(Lora(dropout=0.0)).run()
    one, other = (torch.cat([p.flatten() for p in trainable_state(a.loop.model).values()]) for a in (halved, whole))
    assert (one - other).norm() < 1e-3 * other.norm()
    assert [rows for _, rows in halved.loop.progress.micro_batches] == [6, 3, 1]
    counted = ("steps", "rows", "rows_per_task", "tokens_per_task", "real_tokens")
    assert {name: told(halved)[name] for name in counted} == {name: told(whole)[name] for name in counted}


def test_it_is_not_tried_again_after_a_crash(tmp_path: Path):
    method = Lora(dropout=0.2)
    whole = Attempt(method, build=SmallModel(3)).run()
    with pytest.raises(Crash):
        Attempt(method, tmp_path, build=SmallModel(3), crash_at=5).run()
    small = SmallModel(3)
    again = Attempt(method, tmp_path, build=small).run()
    assert max(small.seen) <= 3
    assert_equal(whole, again)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__ + str(e)[:12])
def test_no_room_for_one_row_is_a_failure_of_class_oom(error: Exception):
    assert is_out_of_memory(error)
    with pytest.raises(NoRoom, match="single row") as caught:
        Attempt(Lora(), build=SmallModel(0, error=error)).run()
    failure = failure_of(caught.value, cell())
    assert failure.kind == "oom" and "--micro-batch" in failure.next_step


def test_a_loss_that_cannot_be_split_is_one_too():
    with pytest.raises(NoRoom, match="cannot be taken in parts.*not linear"):
        Attempt(Squared(), build=SmallModel(6)).run()


def test_other_errors_are_not_taken_for_it():
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shape"):
        Attempt(Lora(), build=SmallModel(6, error=RuntimeError("shape mismatch"))).run()


def test_the_stop_split_is_scored_in_smaller_parts():
    changes = {"micro_batch": 4}
    whole = Attempt(Lora(), changes=changes).run()
    less = Attempt(Lora(), build=SmallModel(2, training=False), changes=changes).run()
    for one, other in zip(whole.loop.progress.stop_losses, less.loop.progress.stop_losses, strict=True):
        assert one[0] == other[0] and one[1] == pytest.approx(other[1], rel=1e-5)
    assert less.loop.progress.micro_batches == []
    with pytest.raises(NoRoom):
        Attempt(Lora(), build=SmallModel(0, training=False)).run()


def cell() -> Cell:
    return Cell(method="lora", tasks=("glue/rte",), model="demo", protocol=Protocol())

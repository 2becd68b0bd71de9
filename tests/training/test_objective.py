"""Losses of rows and tasks weigh as the protocol says, the same for every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from mtlbench.api.cell import Protocol
from mtlbench.composition import Sum
from mtlbench.errors import RequestError
from mtlbench.nn.losses import task_means
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.planning.weighting import ordered_weighting, read_weighting
from mtlbench.testing import setup_for, tiny_causal, toy_loop
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench.training.objective import objective_of
from mtlbench_methods.lora import Lora
from mtlbench_methods.mtl_lora import MtlLora
from mtlbench_methods.peml import Peml
from mtlbench_methods.prefixnas import PrefixNas

LOSSES = torch.tensor([1.0, 2.0, 6.0, 4.0])
TASKS = torch.tensor([0, 0, 2, 0])


def test_rows_tasks_and_weights_are_the_means_they_name():
    def of(weighting: str) -> float:
        return float(objective_of(Lora(), 3, weighting=weighting)(LOSSES, TASKS, torch.nn.Module()))

    assert of("rows") == of("method") == pytest.approx(13 / 4)
    assert of("tasks") == pytest.approx((7 / 3 + 6) / 2)
    assert of("weights:a=1,b=5,c=3") == pytest.approx((7 / 3 + 3 * 6) / 4), "over the weights of the tasks present"


def test_a_method_says_what_it_minimises_and_so_does_a_composition():
    assert (Lora().weighting, PrefixNas().weighting, Peml().weighting) == ("rows", "tasks", "tasks")
    assert Sum(members=(Lora(), PrefixNas())).weighting == "tasks"
    assert str(objective_of(Peml(), 3)) == "tasks" and str(objective_of(Peml(), 3, weighting="rows")) == "rows"


def trained(method, **protocol):
    model = tiny_causal(0)
    setup = setup_for(model, tasks=3)
    method.attach(model, setup)
    fixed = {"steps": 4, "batch_size": 12, "learning_rate": 1e-2, "evals_per_run": 0}
    loop = toy_loop(model, method, setup, Protocol(**fixed, **protocol))
    loop.run()
    return loop.progress.task_weighting, torch.cat([p.flatten() for p in trainable_state(loop.model).values()])


@dataclass(frozen=True, kw_only=True)
class ByTask(Lora):
    """The mean over tasks, as a method of its own would compute it."""

    name: ClassVar[str] = "by_task"

    def loss(self, row_losses, tasks, model):
        return task_means(row_losses, tasks, 3)


def test_every_method_can_train_on_the_loss_of_another():
    said, ours = trained(Lora(dropout=0.0), task_weighting="tasks")
    own, reference = trained(ByTask(dropout=0.0))
    assert (said, own) == ("tasks", "own")
    assert torch.equal(ours, reference)
    said, by_rows = trained(Lora(dropout=0.0), task_weighting="rows")
    assert said == "rows" and not torch.equal(by_rows, ours)
    assert torch.equal(by_rows, trained(Lora(dropout=0.0))[1])


@pytest.mark.parametrize("weighting", ["tasks", "weights:a=1,b=2,c=4"])
def test_micro_batches_sum_to_the_weighted_step(weighting):
    states = [trained(MtlLora(dropout=0.0), task_weighting=weighting, micro_batch=size)[1] for size in (None, 5)]
    assert (states[0] - states[1]).norm() < 1e-3 * states[0].norm()


def test_what_cannot_be_weighted_is_refused_with_what_is_known():
    for text in ("even", "weights:", "weights:a=0", "weights:a=1,a=2"):
        with pytest.raises(RequestError, match="task_weighting="):
            read_weighting(text)
    with pytest.raises(RequestError, match=r"gives no weight to glue/sst2"):
        ordered_weighting("weights:glue/rte=2", ("glue/rte", "glue/sst2"))
    with pytest.raises(RequestError, match=r"'glue/rt' is not trained here. Did you mean 'glue/rte'"):
        ordered_weighting("weights:glue/rt=2", ("glue/rte",))
    assert ordered_weighting("weights:b=1,a=2", ("a", "b")) == "weights:a=2,b=1"


def test_the_protocol_names_it_and_older_keys_stay():
    def plan(**protocol):
        return make_plan(Request(methods="lora", tasks="glue/rte,glue/sst2", protocol=protocol)).cells[0]

    usual, tasks = plan(), plan(task_weighting="tasks")
    assert "task_weighting" not in usual.protocol.identity() and usual.key != tasks.key
    assert tasks.protocol.name == "standard + task_weighting=tasks"

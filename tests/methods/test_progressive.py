"""Progressive task-specific adaptation: groups against the recorded equation, and what training does with them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from attached import BUILDERS, attached, batch_for

from mtlbench.api.cell import Protocol
from mtlbench.api.routing import Routing
from mtlbench.cells.guards import label_logits
from mtlbench.errors import RequestError
from mtlbench.evaluation.packable import packable
from mtlbench.evaluation.readers import CausalReader, Seq2seqReader
from mtlbench.files.stop_request import StopRequest
from mtlbench.nn.blocks.branching import BranchingLinear, TaskGradients, branch_counts, group_tasks
from mtlbench.nn.low_rank.layer import merge_low_rank
from mtlbench.testing import setup_for, tiny_causal, toy_loop, toy_rows
from mtlbench.training.checkpoints.checkpoint import CheckpointStore
from mtlbench.training.checkpoints.recovery import CheckpointPolicy
from mtlbench.training.checkpoints.state import load_adapter, save_adapter, trainable_state
from mtlbench.training.loss import row_losses
from mtlbench_methods.progressive import Progressive

GOLDENS = Path(__file__).parents[1] / "goldens"
SMALL = Progressive(rank=4, stages=2)


def golden(dtype):
    with np.load(GOLDENS / "progressive.npz") as loaded:
        arrays = dict(loaded)
    config = json.loads((GOLDENS / "progressive.json").read_text())["config"]
    draw = torch.zeros(2, arrays["grads"].shape[-1] // 2)
    linear = BranchingLinear(
        torch.nn.Linear(5, 2, bias=False), {"down": torch.zeros(5, 5), "up": draw}, tasks=config["tasks"], scale=1.0
    )
    return TaskGradients([[linear]], config["tasks"]).to(dtype), linear, arrays, config


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-6)])
def test_similarities_and_groups_equal_the_recorded_ones(dtype, tolerance):
    gradients, linear, arrays, config = golden(dtype)
    for batch in arrays["grads"]:
        linear.get_parameter("probe").data = linear.probe.data.to(dtype)
        linear.probe.grad = torch.from_numpy(batch).to(dtype).view(linear.probe.shape)
        gradients.look(0)
    found = gradients.similarity(0)
    assert np.abs(found.double().numpy() - arrays["similarity"]).max() < tolerance
    for count in config["group_counts"]:
        labels = arrays[f"labels_G{count}"]
        wanted = {tuple(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}
        assert set(group_tasks(found, count, [tuple(range(config["tasks"]))])) == wanted, count


def test_groups_split_those_of_the_stage_before():
    alike = torch.eye(4)
    alike[0, 3] = alike[3, 0] = 0.9
    alike[1, 2] = alike[2, 1] = 0.8
    assert group_tasks(alike, 2, [(0, 1, 2, 3)]) == ((0, 3), (1, 2))
    assert group_tasks(alike, 2, [(0, 1), (2, 3)]) == ((0, 1), (2, 3))
    assert group_tasks(alike, 1, [(0, 1), (2, 3)]) == ((0, 1), (2, 3))
    assert group_tasks(alike, 4, [(0, 1), (2, 3)]) == ((0,), (1,), (2,), (3,))
    assert branch_counts(4, 8) == (1, 2, 4, 8) and branch_counts(4, 3) == (1, 1, 2, 3) and branch_counts(2, 1) == (1, 1)


def test_a_task_that_a_step_has_no_rows_of_is_left_out_of_its_mean():
    gradients, linear, _, _ = golden(torch.float32)
    one, none = torch.randn(4, 10), torch.zeros(4, 10)
    mixed = torch.cat([one[:2], none[2:]])
    for given in (one, mixed):
        linear.probe.grad = given.view(linear.probe.shape)
        gradients.look(0)
    torch.testing.assert_close(gradients.similarity(0).diagonal(), torch.ones(4))


@pytest.mark.parametrize("build", BUILDERS)
def test_the_gradient_of_a_probe_is_that_of_its_task(build):
    method = replace(SMALL, dropout=0.0)
    model, setup = attached(build, method)
    batch = batch_for(setup)
    linears = [module for module in model.modules() if isinstance(module, BranchingLinear)]
    with torch.no_grad():
        for linear in linears:
            linear.probe.zero_()
    row_losses(model, batch, setup.routing).sum().backward()
    found = [(linear.probe.grad.clone(), linear.up.grad.clone()) for linear in linears]
    for task in range(3):
        model.zero_grad()
        losses = row_losses(model, batch, setup.routing)
        losses[batch.tasks == task].sum().backward()
        for linear, (probe, _) in zip(linears, found, strict=True):
            torch.testing.assert_close(probe[task], linear.up.grad, atol=1e-5, rtol=1e-4)
    for probe, shared in found:
        torch.testing.assert_close(probe.sum(0), shared, atol=1e-5, rtol=1e-4)


def trained(method=SMALL, *, folder=None, crash_at=None):
    model = tiny_causal(0, num_hidden_layers=4)
    setup = setup_for(model, tasks=4)
    method.attach(model, setup)

    def stepped(step, losses, tasks):
        if step + 1 == crash_at:
            raise KeyboardInterrupt

    loop = toy_loop(
        model,
        method,
        setup,
        Protocol(steps=10, batch_size=8, evals_per_run=2, patience=9, learning_rate=1e-2),
        on_step=stepped,
        recovery=CheckpointPolicy(CheckpointStore(folder, identity={}), stop=StopRequest(), every_s=0.0)
        if folder
        else None,
    )
    method.fit(model, loop)
    return model, setup, loop


def test_early_layers_are_shared_and_late_ones_belong_to_a_task(tmp_path):
    method = replace(SMALL, stages=4)
    model, setup, loop = trained(method)
    assert [stage.steps - stage.first_step for stage in loop.progress.stages] == [2, 8]
    groups = [model.model.layers[i].self_attn.q_proj.groups() for i in range(4)]
    assert [len(each) for each in groups] == [1, 1, 2, 4]
    for before, after in pairwise(groups):
        assert all(any(set(group) <= set(parent) for parent in before) for group in after)
    assert not hasattr(model, "mtlbench_gradients")
    names = {name.rpartition(".")[2] for name in trainable_state(model)}
    assert {"up", "up_0", "up_1", "up_2", "up_3"} < names and "probe" not in names
    save_adapter(model, tmp_path, {})
    again = tiny_causal(0, num_hidden_layers=4)
    method.attach(again, replace(setup, routing=setup.routing))
    load_adapter(again, tmp_path)
    batch = batch_for(setup, toy_rows(tasks=4, rows=2))
    wanted = label_logits(model, batch, setup.routing)
    assert torch.equal(label_logits(again, batch, setup.routing), wanted)
    merge_low_rank(again, 2)
    of_two = batch_for(setup, [row for row in toy_rows(tasks=4, rows=2) if row.task == 2])
    alone = label_logits(model, of_two, setup.routing)
    torch.testing.assert_close(label_logits(again, of_two, Routing()), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("crash_at", [1, 2, 5])
def test_a_crash_before_or_after_the_split_changes_nothing(tmp_path, crash_at):
    whole = trainable_state(trained()[0])
    with pytest.raises(KeyboardInterrupt):
        trained(folder=tmp_path, crash_at=crash_at)
    again = trainable_state(trained(folder=tmp_path)[0])
    assert whole.keys() == again.keys() and all(torch.equal(p, again[name]) for name, p in whole.items())


@pytest.mark.parametrize("build", BUILDERS)
def test_rows_of_several_sequences_are_scored_together(build):
    model, setup = attached(build, SMALL)
    reader = (CausalReader if build is tiny_causal else Seq2seqReader)(model.eval(), setup.routing, pad_id=0)
    assert packable(reader, max_length=64)


def test_what_cannot_be_is_refused_with_the_reason():
    with pytest.raises(RequestError, match="stages must be a whole number from 2 to 16"):
        Progressive(stages=1)
    with pytest.raises(RequestError, match="warmup_share must be"):
        Progressive(warmup_share=0.0)
    setup = setup_for(tiny_causal(0))
    assert "a target that comes later is in no group" in SMALL.refuse(replace(setup, sources=2))
    assert "2 steps have no room" in SMALL.refuse(replace(setup, total_steps=2))
    assert SMALL.refuse(setup) is None

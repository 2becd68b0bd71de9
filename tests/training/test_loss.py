"""Row losses equal the model's own, and task means the plain definition."""

from __future__ import annotations

import pytest
import torch

from mtlbench.api.routing import Routing
from mtlbench.nn.losses import task_means
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.loss import row_losses


@pytest.mark.parametrize("build", [tiny_causal, tiny_seq2seq])
def test_row_losses_are_what_the_model_gives_row_by_row(build):
    model = build(0)
    architecture = setup_for(model).architecture
    rows = toy_rows(tasks=3, rows=3)
    batch = collate(rows, architecture=architecture, pad_id=0, decoder_start_id=0, device=torch.device("cpu"))
    losses = row_losses(model, batch, Routing())
    for row, loss in zip(rows, losses, strict=True):
        context, target = torch.tensor([row.context]), torch.tensor([row.target])
        if architecture == "causal":
            ids = torch.cat([context, target], 1)
            want = model(input_ids=ids, labels=torch.cat([torch.full_like(context, -100), target], 1)).loss
        else:
            want = model(input_ids=context, labels=target).loss
        torch.testing.assert_close(loss, want, rtol=1e-4, atol=1e-5)


def test_task_means_is_the_mean_over_tasks_present_of_their_means():
    losses = torch.tensor([1.0, 2.0, 6.0, 5.0], requires_grad=True)
    value = task_means(losses, torch.tensor([3, 0, 3, 3]), 5)
    assert value.item() == pytest.approx((4.0 + 2.0) / 2)
    value.backward()
    torch.testing.assert_close(losses.grad, torch.tensor([1 / 6, 1 / 2, 1 / 6, 1 / 6]))

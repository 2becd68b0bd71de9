"""A loss over the tokens of a step is that of the whole step, however many passes compute it."""

from __future__ import annotations

import pytest
import torch

from mtlbench.api.cell import Protocol
from mtlbench.composition import Sum
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_loop
from mtlbench.tokens.encode import TokenRow
from mtlbench.training.batches import Collator, token_rows
from mtlbench.training.checkpoints.state import trainable_state
from mtlbench_methods.loramoe import LoraMoe
from mtlbench_methods.molora import MoLora
from mtlbench_methods.prompt_tuning import PromptTuning


def trained(method, make, **protocol):
    model = make(0)
    setup = setup_for(model, tasks=3)
    method.attach(model, setup)
    losses = []
    fixed = {"steps": 4, "batch_size": 12, "learning_rate": 1e-2, "evals_per_run": 0}
    loop = toy_loop(
        model, method, setup, Protocol(**fixed, **protocol), on_step=lambda step, own, tasks: losses.append(own.clone())
    )
    method.fit(model, loop)
    return trainable_state(model), torch.stack(losses)


@pytest.mark.parametrize("make", [tiny_causal, tiny_seq2seq])
@pytest.mark.parametrize(
    "method",
    [
        MoLora(balance=0.5, dropout=0.2, top_k=2),
        Sum(members=(PromptTuning(prompt_length=3), LoraMoe(balance=0.5, dropout=0.2))),
    ],
    ids=lambda method: method.name,
)
def test_micro_batches_change_nothing_but_rounding(method, make):
    """Nor do they change what dropout draws: the forwards that sum up the reports draw what the others do."""
    whole, losses = trained(method, make)
    for changes in ({"micro_batch": 5}, {"micro_batch": 5, "checkpointing": True}):
        cut, others = trained(method, make, **changes)
        torch.testing.assert_close(others, losses, rtol=1e-4, atol=1e-4)
        for name, value in whole.items():
            torch.testing.assert_close(cut[name], value, rtol=2e-3, atol=2e-4)


def test_a_method_without_the_loss_collects_nothing():
    with_loss, _ = trained(MoLora(balance=0.5), tiny_causal)
    without, _ = trained(MoLora(balance=0.0), tiny_causal)
    assert not MoLora().has_auxiliary_loss
    assert any(not torch.equal(with_loss[name], without[name]) for name in without)


@pytest.mark.parametrize("architecture", ["causal", "seq2seq"])
def test_each_token_is_of_its_row_whichever_way_rows_are_laid(architecture):
    model = tiny_causal(0) if architecture == "causal" else tiny_seq2seq(0)
    rows = [TokenRow(task, tuple(range(10, 10 + n)), tuple(range(3))) for task, n in enumerate((2, 5, 3))]
    collator = Collator(architecture, 0, 0, torch.device("cpu"))
    contexts = [2 + 2, 5 + 2, 3 + 2] if architecture == "causal" else [2, 5, 3]
    for batch in (collator.padded(rows), collator.packed(rows, by_task=True), collator.packed(rows, by_task=False)):
        found = token_rows(batch, model)
        assert found.rows == 3
        counts = [torch.bincount(stream, minlength=4)[:3].tolist() for stream in found.streams]
        assert counts == ([contexts] if architecture == "causal" else [contexts, [3, 3, 3]])


def test_a_padded_encoder_and_decoder_of_one_width_are_told_apart():
    rows = [TokenRow(0, (10, 11, 12), (1, 2, 3)), TokenRow(1, (10, 11), (1,))]
    collator = Collator("seq2seq", 0, 0, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="streams"):
        token_rows(collator.padded(rows), tiny_seq2seq(0)).of(6)
    apart = token_rows(collator.padded(rows, apart=0), tiny_seq2seq(0))
    assert apart.of(6).tolist() == [0, 0, 0, 1, 1, 2] and apart.of(8).tolist() == [0, 0, 0, 2, 1, 2, 2, 2]

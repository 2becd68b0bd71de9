"""Saved adapters come back exactly, and the guards notice what they are for."""

from __future__ import annotations

import pytest
import torch

from mtlbench.cells import guards
from mtlbench.errors import StoreError
from mtlbench.testing import setup_for, tiny_causal, tiny_seq2seq, toy_rows
from mtlbench.training.batches import collate
from mtlbench.training.checkpoints.state import (
    FILE,
    load_adapter,
    save_adapter,
    saved_names,
    trainable_names,
    trainable_state,
)
from mtlbench_methods.mtl_lora import MtlLora


def attached(build=tiny_causal, **settings):
    model = build(0)
    setup = setup_for(model)
    MtlLora(**settings).attach(model, setup)
    return model, setup


def moved(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1
    return model


@pytest.mark.parametrize("build", [tiny_causal, tiny_seq2seq])
def test_save_and_load_give_the_same_logits(build, tmp_path):
    model, setup = attached(build)
    batch = collate(
        toy_rows(tasks=3, rows=1),
        architecture=setup.architecture,
        pad_id=0,
        decoder_start_id=0,
        device=torch.device("cpu"),
    )
    start, before = guards.label_logits(model, batch, setup.routing), trainable_state(model)
    assert not guards.trained(before, trainable_state(model))
    after = guards.label_logits(moved(model), batch, setup.routing)
    assert guards.trained(before, trainable_state(model))
    assert not guards.same_logits(start, after, tolerance=1e-6)
    save_adapter(model, tmp_path, {"method": "mtl_lora"})
    other, setup = attached(build)
    assert load_adapter(other, tmp_path) == {"method": "mtl_lora"}
    assert guards.same_logits(after, guards.label_logits(other, batch, setup.routing), tolerance=0)
    assert guards.same_names(saved_names(tmp_path), trainable_names(model), before)
    assert not guards.same_names(saved_names(tmp_path), trainable_names(model)[1:])
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_nan_logits_are_never_the_same():
    logits = torch.tensor([[float("nan"), 1.0]])
    assert not guards.same_logits(logits, logits, tolerance=1.0)


def test_a_wrong_or_missing_file_is_an_error(tmp_path):
    model, _ = attached()
    save_adapter(model, tmp_path, {})
    with pytest.raises(StoreError, match=r"first 'model\.layers"):
        load_adapter(attached(rank=2)[0], tmp_path)
    with pytest.raises(StoreError, match=r"first 'model\.layers"):
        load_adapter(attached(target="all")[0], tmp_path)
    (tmp_path / FILE).write_bytes(b"broken")
    with pytest.raises(StoreError, match="cannot be read"):
        load_adapter(model, tmp_path)
    with pytest.raises(StoreError, match="cannot be read"):
        load_adapter(model, tmp_path / "nowhere")

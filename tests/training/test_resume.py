"""Training that is interrupted anywhere ends as if it had not been: bitwise, for every way a method keeps state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from resuming import SMALL, Attempt, Crash, assert_equal, method_of
from torch import Tensor

from mtlbench.files.stop_request import Stopped
from mtlbench.testing import tiny_seq2seq, toy_rows
from mtlbench.training.splits import Splits
from mtlbench_methods.lora import Lora


@pytest.mark.parametrize(
    ("ends", "words", "at"),
    [
        *(
            (ends, words, at)
            for ends in ("crash_at", "signal_at")
            for words, at in (
                ("lora[dropout=0.1]", (1, 7, 16)),
                (f"peml[{SMALL},rank=4]", (3, 5, 8, 13)),
                ("lora_st[dropout=0.1]", (2, 6, 7, 14)),
            )
        ),
        ("crash_at", "mtl_lora[dropout=0.1]", (4, 9)),
        ("crash_at", "adalora[init_rank=4,target_rank=2,dropout=0.1]", (2, 6, 12)),
        ("crash_at", f"peml[{SMALL},rank=4,arch_update=joint,per_task=true]", (6,)),
        ("crash_at", f"peml[{SMALL},rank=4,order=prefix_then_lora]", (3, 8, 11)),
        ("crash_at", f"prefixnas[{SMALL}]+adalora[init_rank=4,target_rank=2]", (7, 10)),
        ("crash_at", "preembedd[prefix_length=4]", (6,)),
        ("crash_at", "poly", (9,)),
        ("crash_at", "full", (5,)),
        ("crash_at", "vera", (5,)),
        ("crash_at", "loha", (5,)),
    ],
)
def test_interrupted_training_ends_bitwise_as_undisturbed(tmp_path: Path, ends: str, words: str, at: tuple[int, ...]):
    method = method_of(words)
    undisturbed = Attempt(method).run()
    seen: dict[int, Tensor] = {}
    for step in at:
        attempt = Attempt(method, tmp_path, **{ends: step})
        with pytest.raises(Crash if ends == "crash_at" else Stopped):
            attempt.run()
        first = min(attempt.losses)
        assert attempt.recovery.problems == []
        if ends == "signal_at":
            assert first == max(seen, default=0) + 1, "no step is lost and none is repeated"
            assert max(attempt.losses) == step
        seen.update(attempt.losses)
    last = Attempt(method, tmp_path).run()
    seen.update(last.losses)
    assert_equal(undisturbed, last)
    assert seen.keys() == undisturbed.losses.keys()
    assert all(torch.equal(seen[step], losses) for step, losses in undisturbed.losses.items())
    again = Attempt(method, tmp_path).run()
    assert again.losses == {}, "what is trained is not trained again"
    assert_equal(undisturbed, again)


def test_encoder_decoders_and_recomputation_resume_too(tmp_path: Path):
    method = method_of("mtl_lora[dropout=0.1]")
    changes = {"checkpointing": True, "micro_batch": 5}
    undisturbed = Attempt(method, build=tiny_seq2seq, changes=changes).run()
    with pytest.raises(Crash):
        Attempt(method, tmp_path, build=tiny_seq2seq, changes=changes, crash_at=9).run()
    assert_equal(undisturbed, Attempt(method, tmp_path, build=tiny_seq2seq, changes=changes).run())


def test_early_stopping_goes_on_counting(tmp_path: Path):
    rows, stop = toy_rows(tasks=3, rows=20), toy_rows(tasks=3, rows=20, seed=9)
    wrong = [replace(row, target=(60 + row.target[0] % 7, 2)) for row in stop]  # fitting makes these worse in time
    changes = {"steps": 40, "evals_per_run": 40, "patience": 3, "learning_rate": 2e-2}
    given = {"changes": changes, "splits": Splits(rows, wrong, [])}
    undisturbed = Attempt(Lora(), **given).run()
    stopped = undisturbed.loop.progress.steps
    assert undisturbed.loop.progress.stopped_early and 3 < stopped < 40
    for step in (stopped - 2, stopped - 1):
        with pytest.raises(Stopped):
            Attempt(Lora(), tmp_path, signal_at=step, **given).run()
    assert_equal(undisturbed, Attempt(Lora(), tmp_path, **given).run())


def test_in_float16_the_scale_of_the_loss_is_resumed_too(tmp_path: Path):
    words, changes = "lora[dropout=0.1]", {"micro_batch": 5, "steps": 6, "batch_size": 6, "evals_per_run": 2}
    given = {"autocast": torch.float16, "changes": changes}
    undisturbed = Attempt(method_of(words), **given).run()
    wide = Attempt(method_of(words), changes=changes).run()
    for step, losses in undisturbed.losses.items():
        torch.testing.assert_close(losses.float(), wide.losses[step].float(), rtol=0.05, atol=0.05)
    with pytest.raises(Crash):
        Attempt(method_of(words), tmp_path, crash_at=4, **given).run()
    resumed = Attempt(method_of(words), tmp_path, **given).run()
    assert_equal(undisturbed, resumed)
    assert undisturbed.loop._gradients.scaler.state_dict() == resumed.loop._gradients.scaler.state_dict()

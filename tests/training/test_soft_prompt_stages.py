"""What soft-prompt methods train one after another, from where, and that a crash in between changes nothing."""

from __future__ import annotations

import pytest
import torch
from resuming import Attempt, assert_equal, method_of
from resuming import Crash as ResumeCrash
from test_sources import PROTOCOL, Crash, trained

from mtlbench.api.cell import Protocol
from mtlbench.nn.soft_prompts.prompt import soft_prompt_of
from mtlbench.testing import setup_for, tiny_causal

SLOTS = "prompt_length=4"
METHODS = [
    f"prompt_tuning[{SLOTS}]",
    f"mpt[{SLOTS}]",
    f"attempt[{SLOTS}]",
    f"spot[{SLOTS}]",
    f"spot[{SLOTS},transfer=mixture]",
]


@pytest.fixture(autouse=True)
def four_tasks_with_sources(monkeypatch):
    """:func:`test_sources.trained` says nothing of sources to the method; these methods ask."""
    import dataclasses

    import test_sources

    monkeypatch.setattr(
        test_sources, "setup_for", lambda model, *, tasks: dataclasses.replace(setup_for(model, tasks=tasks), sources=2)
    )


def table(state, name):
    return state[f"mtlbench_soft_prompt.source.{name}"]


@pytest.mark.parametrize("words", METHODS)
def test_a_crash_in_training_changes_nothing(tmp_path, words):
    whole = Attempt(method_of(words)).run()
    for at in (3, 8, 9, 14):
        folder = tmp_path / str(at)
        with pytest.raises(ResumeCrash):
            Attempt(method_of(words), folder=folder, crash_at=at).run()
        again = Attempt(method_of(words), folder=folder).run()
        assert len(again.losses) <= 17 - at, "it went on from the last checkpoint"
        assert_equal(whole, again)


@pytest.mark.parametrize("words", METHODS)
@pytest.mark.parametrize("crash_at", [5, 7, 9])
def test_a_crash_among_sources_or_targets_changes_nothing(tmp_path, words, crash_at):
    whole = trained(method_of(words))
    with pytest.raises(Crash):
        trained(method_of(words), folder=tmp_path / "c", crash_at=crash_at)
    again = trained(method_of(words), folder=tmp_path / "c")
    assert all(torch.equal(p, again[3][-1][name]) for name, p in whole[3][-1].items())


def test_attempt_freezes_its_sources_while_targets_train():
    _, _, seen, (start, sources, targets) = trained(method_of(f"attempt[{SLOTS}]"))
    assert [tasks <= {0, 1} for tasks in seen] == [True] * 6 + [False] * 4
    assert not torch.equal(table(start, "sources"), table(sources, "sources"))
    assert torch.equal(table(sources, "sources"), table(targets, "sources"))
    for name in ("targets", "down", "up", "norm_weight", "norm_bias"):
        assert torch.equal(table(start, name), table(sources, name))
        assert not torch.equal(table(sources, name), table(targets, name))
    assert table(targets, "targets").shape[0] == 2


def test_mpt_learns_from_teachers_of_the_sources_and_targets_start_from_mean_factors():
    _, loop, _, (start, sources, _) = trained(method_of(f"mpt[{SLOTS}]"))
    assert [stage.steps - stage.first_step for stage in loop.progress.stages] == [3, 3, 4]
    assert table(start, "teachers").shape[0] == 2
    assert "mtlbench_soft_prompt.source.teachers" not in sources
    for name in ("rows", "columns"):
        moved = (table(sources, name) - table(start, name)).abs().amax((1, 2)) > 0
        assert moved.tolist() == [True, True, False, False]
    _, _, _, (_, sources, targets) = trained(method_of(f"mpt[{SLOTS},learning_rate=0.00000001]"))
    for name in ("rows", "columns"):
        mean = table(sources, name)[:2].mean(0)
        torch.testing.assert_close(table(targets, name)[2:], mean.expand(2, -1, -1), rtol=0, atol=1e-5)
        assert (table(sources, name)[2:] - mean).abs().max() > 1e-3
        assert torch.equal(table(sources, name)[:2], table(targets, name)[:2])


def test_the_distance_to_teachers_is_part_of_the_loss_only_where_they_teach():
    with_teachers, without = (
        Attempt(method_of(f"mpt[{SLOTS},distill={weight},teacher_share=0.5]")).run() for weight in (5.0, 1e-12)
    )
    assert all(torch.equal(with_teachers.losses[step], without.losses[step]) for step in range(1, 9))
    assert with_teachers.losses[9].sum() > without.losses[9].sum()


@pytest.mark.parametrize("transfer", ["best", "weighted", "mixture", "task"])
def test_spot_starts_targets_from_sources(transfer):
    named = ",from_task=toy/1" if transfer == "task" else ""
    protocol = Protocol(**{**vars(PROTOCOL), "adapt_steps": 1, "learning_rate": 1e-9})
    words = f"spot[{SLOTS},transfer={transfer},learning_rate=0.000000001,top=2{named}]"
    model, _, _, (start, sources, targets) = trained(method_of(words), protocol)
    prompts = table(targets, "prompts")
    source = soft_prompt_of(model).source
    taken = source.notes()["prompts_from"]
    assert list(taken) == ["toy/2", "toy/3"]
    assert not torch.equal(table(start, "prompts")[2:], prompts[2:])
    for task in (2, 3):
        shares = taken[f"toy/{task}"]
        if transfer == "mixture":
            assert shares == {"all sources": 1.0}
            wanted = prompts[0]
        else:
            wanted = sum(share * table(sources, "prompts")[int(name[-1])] for name, share in shares.items())
        torch.testing.assert_close(prompts[task], wanted, rtol=0, atol=1e-3)
        assert transfer != "task" or shares == {"toy/1": 1.0}
        assert transfer != "best" or list(shares.values()) == [1.0]


def test_every_task_is_a_target_of_the_others_without_sources():
    attempt = Attempt(method_of(f"spot[{SLOTS}]")).run()
    taken = soft_prompt_of(attempt.loop.model).source.notes()["prompts_from"]
    assert len(taken) == 3
    assert all(name not in shares for name, shares in taken.items())
    assert [stage.steps - stage.first_step for stage in attempt.loop.progress.stages] == [8, 8]


def test_mixed_batches_see_the_prompt_of_their_task_and_a_joint_stage_one_prompt():
    model = tiny_causal(0)
    setup = setup_for(model, tasks=3)
    method_of(f"spot[{SLOTS}]").attach(model, setup)
    source = soft_prompt_of(model).source
    ids = torch.tensor([[5, 6, 7]] * 3)
    with torch.no_grad(), setup.routing.of(torch.tensor([0, 1, 2])):
        own = model(input_ids=ids).logits
        source.joint = True
        joint = model(input_ids=ids).logits
    assert (own[0] - own[1]).abs().max() > 1e-3
    torch.testing.assert_close(joint[1:], joint[:1].expand(2, -1, -1))
    torch.testing.assert_close(joint[0], own[0])

"""The kit passes honest methods, and every check finds the method that breaks its promise, and only that one."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import MUTANTS, GlobalBuffer, Mutant
from toys import Honest, Noisy, OneEach, OtherLayout, PerTask, Shared, toy

from mtlbench.conformance.findings import Finding
from mtlbench.conformance.kit import BACKBONES, CHECKS, method_findings, unexamined
from mtlbench.errors import RequestError
from mtlbench.testing import check_method

ADVICE = {check.name: check.advice for check in CHECKS}
PROMISES = {check.name: check.promise for check in CHECKS}
ROW_BY_ROW = ("padding", "mixed_tasks", "beams")
"""Checks that look at both halves of an encoder-decoder."""


def outcomes(method: Honest, *backbones: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in method_findings(method, backbones=backbones)}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("layer", [Shared, Noisy, PerTask, OtherLayout, OneEach])
def test_an_honest_method_keeps_every_promise(layer: type[Shared], backbone: str):
    found = outcomes(toy(layer), backbone)
    assert [*found] == [check.name for check in CHECKS]
    skipped = {"imports": "the class is not in the module of an entry point"}
    skipped |= {} if issubclass(layer, PerTask) else {"absent_tasks": "the method is not task_routed"}
    assert {f.check: f.message for f in found.values() if f.outcome == "skipped"} == skipped
    assert not [f for f in found.values() if f.outcome == "failed"]


def test_the_example_package_keeps_every_promise(installed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(installed(Path("mtlbench-example"), tmp_path / "site"))
    check_method("scaled_rows[strength=2]")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_promise_is_found_by_its_check_alone(mutant: Mutant):
    backbones = BACKBONES if mutant.check in ROW_BY_ROW else ["tiny Llama"]
    for backbone in backbones:
        found = outcomes(mutant.method, backbone)
        assert {name for name, f in found.items() if f.outcome == "failed"} == {mutant.check, *mutant.also}
        message = found[mutant.check].message
        assert mutant.seen in message
        raised = mutant.seen.startswith("raised")
        assert message.endswith(f"this check asks that {PROMISES[mutant.check]}." if raised else ADVICE[mutant.check])


def test_a_frozen_random_projection_that_forgets_the_seed_is_found():
    found = outcomes(toy(GlobalBuffer, finish=lambda self, model: None), "tiny Llama")
    assert [name for name, f in found.items() if f.outcome == "failed"] == ["reload", "same_seed", "resume"]


def test_every_check_can_fail():
    elsewhere = {"imports"}  # tests/conformance/test_check_command.py, as it needs a package
    assert {mutant.check for mutant in MUTANTS} | elsewhere == set(ADVICE)


def begin_count(self, model, setup):
    Honest.attach(self, model, setup)
    model.steps = 0


def count(self, model, step):
    model.steps += 1


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (toy(attach=begin_count, after_step=count), "no class says resumable = True"),
        (
            toy(attach=begin_count, after_step=count, resumable=True),
            "the attribute :steps changes in training and nothing keeps it",
        ),
    ],
)
def test_a_method_that_starts_from_zero_has_nothing_to_resume(method: Honest, reason: str):
    found = outcomes(method, "tiny Llama")["resume"]
    assert found.outcome == "skipped" and found.message.endswith(reason)


def refuse(self, setup):
    return "there are no diamonds"


def refuse_late(self, model, setup):
    raise RequestError("toy[size=5] must divide 32")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (toy(refuse=refuse), "refused: there are no diamonds"),
        (toy(attach=refuse_late), "refused: toy[size=5] must divide 32"),
    ],
)
def test_a_refusal_is_the_only_finding(method: Honest, reason: str):
    found = method_findings(method)
    assert found == tuple(Finding("attach", backbone, "skipped", reason) for backbone in BACKBONES)
    with pytest.raises(AssertionError, match=r"no promise was examined: refused: .*allow_refusal=True"):
        check_method(method)
    check_method(method, allow_refusal=True)


def test_settings_that_fit_are_named_unless_they_are_what_was_refused():
    refused = toy(refuse=refuse, example_settings={"flag": True, "learning_rate": 0.5})
    assert "such as toy[flag=true,learning_rate=0.5]" in unexamined(refused, method_findings(refused))
    refused = toy(refuse=refuse, example_settings={"learning_rate": None})
    assert "state them as Method.example_settings" in unexamined(refused, method_findings(refused))
    assert unexamined(toy(), method_findings(toy(), backbones=["tiny T5"])) is None


def test_nothing_to_train_is_said():
    found = outcomes(toy(attach=lambda self, model, setup: None, fit=lambda self, model, trainer: None), "tiny Llama")
    skipped = {name for name, f in found.items() if f.outcome == "skipped"}
    of_training = {"gradients", "absent_tasks", "checkpointing", "keys", "reload", "same_seed", "resume"}
    assert skipped == {*of_training, "imports"}
    assert found["keys"].message == "the method adds no trainable parameters"
    assert {f.outcome for name, f in found.items() if name not in skipped} == {"ok"}


def test_global_random_states_are_given_back():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    outcomes(toy(Noisy), "tiny Llama")
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_the_call_for_plugin_tests_lists_what_failed():
    check_method(toy())
    check_method("lora[rank=4]")
    with pytest.raises(AssertionError) as caught:
        check_method(toy(task_routed=True))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["  tiny Llama, routing", "  tiny T5, routing"]
    with pytest.raises(RequestError, match="lorra"):
        check_method("lorra")

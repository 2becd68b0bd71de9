"""What a plugin author's tests need: tiny random backbones, toy rows, a setup, all checks in one call. No network."""

from __future__ import annotations

from mtlbench.api.method import Method
from mtlbench.api.task import TaskSuite
from mtlbench.conformance import kit, suites
from mtlbench.conformance.kit import methods_named
from mtlbench.conformance.toys import PAD, VOCABULARY, setup_for, tiny_causal, tiny_seq2seq, toy_loop, toy_rows
from mtlbench.plugins import load_suite

__all__ = [
    "PAD",
    "VOCABULARY",
    "check_method",
    "check_suite",
    "setup_for",
    "tiny_causal",
    "tiny_seq2seq",
    "toy_loop",
    "toy_rows",
]


def check_method(method: str | Method) -> None:
    """Run the conformance kit over a method, or over an installed one by its name, such as ``lora[rank=4]``.

    Raises:
        AssertionError: listing every check that failed with what to change. A refusal is no failure.
    """
    methods = methods_named(method).values() if isinstance(method, str) else [method]
    failed = [f for each in methods for f in kit.check_method(each) if f.outcome == "failed"]
    lines = "".join(f"\n  {f.backbone}, {f.check}: {f.message}" for f in failed)
    assert not failed, f"{len(failed)} checks of {method!r} failed:{lines}"


def check_suite(suite: str | TaskSuite, *, data: str = "demo", train: bool = True) -> None:
    """Check every task of a suite, or of an installed one by its name, on ``data``: ``demo``, ``hub`` or a folder.

    ``train=False`` leaves out the check that trains a toy model, which takes seconds for each task.

    Raises:
        AssertionError: listing for every task the first check that failed.
    """
    found = suites.check_suite(load_suite(suite) if isinstance(suite, str) else suite, data=data, train=train)
    failed = [finding for finding in found if not finding.ok]
    lines = "".join(f"\n  {f.task}, {f.check}: {f.message}" for f in failed)
    assert not failed, f"{len(failed)} tasks failed:{lines}"

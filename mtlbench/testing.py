"""What a plugin author's tests need: tiny random backbones, toy rows, a setup, all checks in one call. No network."""

from __future__ import annotations

from mtlbench.api.method import Method
from mtlbench.api.task import TaskSuite
from mtlbench.conformance import kit, others, suites
from mtlbench.conformance.kit import methods_named
from mtlbench.conformance.toys import PAD, VOCABULARY, setup_for, tiny_causal, tiny_seq2seq, toy_loop, toy_rows
from mtlbench.plugins import load_suite

__all__ = [
    "PAD",
    "VOCABULARY",
    "check_executor",
    "check_method",
    "check_observer",
    "check_report",
    "check_suite",
    "setup_for",
    "tiny_causal",
    "tiny_seq2seq",
    "toy_loop",
    "toy_rows",
]


def check_method(method: str | Method, *, allow_refusal: bool = False) -> None:
    """Run the conformance kit over a method, or over an installed one by its name, such as ``lora[rank=4]``.

    Args:
        allow_refusal: Also pass where the method refuses every tiny backbone, so that no promise is examined.

    Raises:
        AssertionError: listing every check that failed with what to change, or saying that nothing was examined.
    """
    for each in methods_named(method).values() if isinstance(method, str) else [method]:
        findings = kit.method_findings(each)
        failed = [f for f in findings if f.outcome == "failed"]
        lines = "".join(f"\n  {f.backbone}, {f.check}: {f.message}" for f in failed)
        assert not failed, f"{len(failed)} checks of {method!r} failed:{lines}"
        nothing = kit.unexamined(each, findings)
        assert allow_refusal or nothing is None, f"{method!r}: {nothing} Or pass allow_refusal=True."


def check_suite(suite: str | TaskSuite, *, data: str = "demo", train: bool = True) -> None:
    """Check every task of a suite, or of an installed one by its name, on ``data``: ``demo``, ``hub`` or a folder.

    ``train=False`` leaves out the check that trains a toy model, which takes seconds for each task.

    Raises:
        AssertionError: listing for every task the first check that failed.
    """
    found = suites.suite_findings(load_suite(suite) if isinstance(suite, str) else suite, data=data, train=train)
    failed = [finding for finding in found if not finding.ok]
    lines = "".join(f"\n  {f.task}, {f.check}: {f.message}" for f in failed)
    assert not failed, f"{len(failed)} tasks failed:{lines}"


def check_report(name: str) -> None:
    """Check an installed report on small studies of every kind.

    Raises:
        AssertionError: saying what failed.
    """
    _check("reports", name)


def check_observer(name: str) -> None:
    """Check an installed observer with the events of a small run.

    Raises:
        AssertionError: saying what failed.
    """
    _check("observers", name)


def check_executor(name: str) -> None:
    """Check an installed executor: it runs one small cell on this machine, unless it says that it cannot run here.

    Raises:
        AssertionError: saying what failed.
    """
    _check("executors", name)


def _check(group: str, name: str) -> None:
    failed = [finding for finding in others.plugin_findings(group, name) if finding.outcome == "failed"]
    assert not failed, f"{name!r}, {failed[0].check}: {failed[0].message}"

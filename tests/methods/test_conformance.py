"""Every method that mtlbench brings keeps its promises: an entry point is all a new one needs to be checked here."""

from __future__ import annotations

import pytest

from mtlbench.conformance.kit import method_findings, methods_named, unexamined
from mtlbench.plugins import load_method, offers


def installed():
    """Each first-party method; peft's own tuners are many and not ours, so they are checked by ``make test-slow``."""
    for name, (offer, *_) in offers("methods").items():
        if offer.distribution == "mtlbench":
            marks = [pytest.mark.slow] if offer.module == "mtlbench_methods.peft_tuners" else []
            small = ",".join(f"{key}={value}" for key, value in load_method(name).example_settings.items())
            yield pytest.param(f"{name}[{small}]" if small else name, marks=marks)


@pytest.mark.parametrize("words", [*installed()])
def test_it_keeps_its_promises(words: str):
    (method,) = methods_named(words).values()
    findings = method_findings(method)
    assert not [finding for finding in findings if finding.outcome == "failed"]
    if unexamined(method, findings):
        pytest.skip(findings[0].message)

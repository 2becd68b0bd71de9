"""Every method that mtlbench brings keeps its promises: an entry point is all a new one needs to be checked here."""

from __future__ import annotations

import pytest

from mtlbench.conformance.kit import check_method, methods_named
from mtlbench.plugins import offers

SMALL = {
    "c3a": "block_size=8",
    "fourierft": "n_frequency=100",
    "miss": "r=8",
    "psoft": "r=8",
    "road": "group_size=8",
    "shira": "r=4",
    "vblora": "vector_length=8",
    "waveft": "n_frequency=64",
}
"""Settings where the defaults are refused on a tiny backbone, for its size."""


def installed():
    """Each first-party method; peft's own tuners are many and not ours, so they are checked by ``make test-slow``."""
    for name, (offer, *_) in offers("methods").items():
        if offer.distribution == "mtlbench":
            marks = [pytest.mark.slow] if offer.module == "mtlbench_methods.peft_tuners" else []
            yield pytest.param(f"{name}[{SMALL[name]}]" if name in SMALL else name, marks=marks)


@pytest.mark.parametrize("words", [*installed()])
def test_it_keeps_its_promises(words: str):
    (method,) = methods_named(words).values()
    findings = list(check_method(method))
    assert not [finding for finding in findings if finding.outcome == "failed"]
    if not [finding for finding in findings if finding.outcome == "ok"]:
        pytest.skip(findings[0].message)

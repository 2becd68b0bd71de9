"""Every failure has one class and one sentence that says what to do next, and docs/reliability.md lists them all."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import get_args

import pytest
from safetensors import SafetensorError
from store_builder import make_cell

from mtlbench.api.record import FailureClass
from mtlbench.cells.failure import GuardError, failure_of, lost
from mtlbench.errors import PluginError, RequestError, StoreError
from mtlbench.files.sealed import Damaged
from mtlbench.files.temporary import DiskError

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "oom"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (DiskError(errno.EDQUOT, "No room"), "disk"),
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "disk"),
        (SafetensorError("Error while deserializing header: header too large"), "corrupt"),
        (Damaged("the checksum does not match"), "corrupt"),
        (StoreError("The adapter cannot be read"), "corrupt"),
        (RequestError("no such file"), "user"),
        (PluginError("not a method"), "plugin"),
        (GuardError("the backbone changed"), "plugin"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_error_has_its_class_and_a_next_step(error: Exception, kind: str) -> None:
    failure = failure_of(error, make_cell())
    assert failure.kind == kind
    assert failure.next_step.endswith(".") and len(failure.next_step) > 30


def test_the_document_says_what_to_do_for_every_class() -> None:
    listed = re.findall(r"^\| `(\w+)` \| .+ \| .+\. \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(get_args(FailureClass))


def test_errors_that_stand_behind_each_other_in_a_circle_end_in_a_record():
    """As `raise found or error from error` makes one where nothing was found."""
    one, other = OSError("gone"), ValueError("wrong")
    one.__cause__, other.__context__ = other, one
    assert lost(one) is None
    with pytest.raises(OSError, match="itself") as raised:
        raise (error := OSError("itself")) from error
    assert lost(raised.value) is None

"""Named measurements: the words under ``measure`` of a preset that a suite or a method carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.errors import RequestError
from mtlbench.presets import preset


def with_preset(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The words of a preset with those ``given`` on top.

    Raises:
        RequestError: there is no such preset, or it is one of `mtlbench run`.
    """
    if name is None:
        return dict(given)
    words = preset(name)
    if "measure" not in words:
        raise RequestError(f"The preset {name!r} trains and scores: use mtlbench run --preset {name}.")
    return {**words["measure"], **given}

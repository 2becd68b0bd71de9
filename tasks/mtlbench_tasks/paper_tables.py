"""Which tables of the PEML paper (arXiv 2605.14055) show which task of GLUE, SuperGLUE and commonsense."""

from __future__ import annotations

from collections.abc import Mapping

_SEVEN = ("sst2", "mrpc", "rte", "cola", "qqp", "wnli", "qnli")
_SUPERGLUE = ("boolq", "cb", "copa", "multirc", "rte", "wic", "wsc")
GLUE: Mapping[int, tuple[str, ...]] = {
    1: _SEVEN,
    2: ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"),
    7: _SEVEN,
}
SUPERGLUE: Mapping[int, tuple[str, ...]] = {
    3: tuple(name for name in _SUPERGLUE if name != "cb"),
    4: _SUPERGLUE,
    8: tuple(name for name in _SUPERGLUE if name != "cb"),
    9: _SUPERGLUE,
    11: ("boolq", "copa", "rte", "wsc", "wic"),
}


def tables_of(name: str, known: Mapping[int, tuple[str, ...]]) -> tuple[str, ...]:
    """The tables with a column for the task, and table 10, which shows the averages of whole suites."""
    numbers = sorted({10, *(number for number, names in known.items() if name in names)})
    return tuple(f"peml/table-{number}" for number in numbers)

"""Tasks and suites as plain data; lm-eval holds the one definition of every prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Rows = list[dict[str, Any]]
Kind = Literal["text", "texts", "number"] | tuple[int, ...] | tuple[str, ...]
"""Type of a column's values: text, a non-empty list of texts, a number, or one of these values."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Examples and their scoring.

    ``yaml`` is ``package:path`` of an lm-eval task file: ``lm_eval:glue/rte/default.yaml`` is relative to lm-eval's own
    ``tasks`` folder, any other package is relative to that package.
    """

    name: str
    """Short name inside the suite, such as ``rte``."""
    yaml: str
    metrics: tuple[str, ...]
    """Metrics of the YAML; the task's score in tables is their mean, in percent."""
    dataset: str
    """Hub id of the data set, such as ``nyu-mll/glue``; a data folder has the same layout."""
    config: str | None
    """Configuration of the data set, such as ``rte``."""
    train_split: str = "train"
    eval_split: str = "validation"
    shots: int = 0
    """Few-shot examples before every prompt: the first ones of the training split, never the example itself."""
    shots_split: str | None = None
    """Split of the few-shot examples, if it is another one; it is neither trained on nor scored."""
    shots_by: str | None = None
    """Column in which few-shot examples must have the same value as the prompted example, such as ``subject``;
    examples whose value does not occur are prompted 0-shot."""
    columns: Mapping[str, Kind] = field(default_factory=dict)
    """Columns that the prompt and the target use, with their types; ``choices.text`` is a field of a struct column.
    Checked before any computation."""
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns of label numbers with the names of 0, 1 and so on, as the hub's ``ClassLabel`` has them. Data that
    carries these names in another order is refused."""
    licence: str = ""
    source: str = ""
    tables: tuple[str, ...] = ()
    """Paper tables that show the task, such as ``peml/table-2``."""


@dataclass(frozen=True, kw_only=True)
class TaskSuite:
    """A named tuple of tasks."""

    name: str
    title: str
    tasks: tuple[Task, ...]
    demo: Callable[[str, str | None, str], Rows] | None = None
    """``demo(dataset, config, split)`` returns generated examples with the hub's columns; ``None``: no demo data."""
    demo_fingerprint: Callable[[], str] | None = None
    """A digest that changes when the generated examples may change."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Named requests, such as ``glue/quick``: options by name; see :mod:`mtlbench.planning.presets`."""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Named protocols, such as ``glue/strict``: fields by name; see :mod:`mtlbench.planning.protocols`."""

"""Tasks and suites as plain data; lm-eval holds the one definition of every prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Rows = list[dict[str, Any]]
Kind = Literal["text", "texts", "number"] | tuple[int, ...] | tuple[str, ...]
"""What a column holds: text, a list of texts that is not empty, a number, or one of these values."""


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
    """Metrics of the YAML that make the task's score: their mean, in percent, is what tables show."""
    dataset: str
    """Hub id of the data set, such as ``nyu-mll/glue``; a data folder mirrors it."""
    config: str | None
    """Configuration of the data set, such as ``rte``."""
    train_split: str = "train"
    eval_split: str = "validation"
    shots: int = 0
    """Worked examples before every prompt: the first rows of the training split, never the row that is asked."""
    shots_split: str | None = None
    """Split the worked examples come from, where it is another one; it is neither trained on nor scored."""
    shots_by: str | None = None
    """Column whose value a worked example shares with the row that is asked, such as ``subject``; rows whose value no
    example has are asked without."""
    columns: Mapping[str, Kind] = field(default_factory=dict)
    """What the prompt and the target read, and what it holds; ``choices.text`` is a field of a column of structures.
    Checked before any compute."""
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
    """``demo(dataset, config, split)`` gives generated rows in the hub's schema; ``None`` when the suite has none."""
    demo_fingerprint: Callable[[], str] | None = None
    """A digest that changes when the generated rows can change."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Named requests, such as ``glue/quick``: options by name; see :mod:`mtlbench.planning.presets`."""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Named protocols, such as ``glue/strict``: fields by name; see :mod:`mtlbench.planning.protocols`."""

"""An lm-eval task object from one YAML file and given splits.

lm-eval's ``TaskManager`` first indexes all its tasks, which takes longer than a small cell; here only the required file
is read.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.api.cell import digest
from mtlbench.api.task import Task
from mtlbench.compat import compile_templates_once, load_task_yaml, without_task_bars
from mtlbench.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    import datasets

    from mtlbench.compat import ConfigurableTask


def load_lm_task(task: Task, splits: Mapping[str, datasets.Dataset], *, name: str) -> ConfigurableTask:
    """The lm-eval task of ``task`` over ``splits``, with ``task.shots``, evaluated on exactly ``task.eval_split``.

    ``name`` is the full name, such as ``glue/rte``, which becomes ``task_name`` of lm-eval's requests. ``process_docs``
    of the YAML is applied here, once.

    Raises:
        PluginError: the YAML is missing, invalid, or lacks metrics that the task names.
    """
    from mtlbench.compat import ConfigurableTask
    from mtlbench.data.shots import sampler

    path = yaml_path(task)
    compile_templates_once()
    with quiet_lm_eval():
        try:
            config = load_task_yaml(path)
            process = config.pop("process_docs", None) or _unchanged
            rows = {split: process(docs) for split, docs in splits.items()}
            pool = rows[task.shots_split or task.train_split]
            first = pool if task.shots_by else pool.select(range(min(task.shots + 1, len(pool))))
            config |= {
                "task": name,
                "custom_dataset": lambda **_: rows,
                "dataset_kwargs": None,
                "training_split": task.train_split,
                "validation_split": task.eval_split,
                "test_split": None,
                "num_fewshot": task.shots,
                "fewshot_split": None,
                # A small pool, as lm-eval would copy the whole training split into a list.
                "fewshot_config": {"sampler": sampler(task.shots_by), "samples": list(first) if task.shots else []},
            }
            lm_task = ConfigurableTask(config=config)
        except Exception as error:
            raise PluginError(
                f"Task {name!r}: lm-eval cannot make a task of {str(path)!r}: {type(error).__name__}: {error}"
            ) from error
    known = lm_task.aggregation()
    for metric in task.metrics:
        if metric.partition(",")[0] not in known:
            raise PluginError(f"Task {name!r} names the metric {metric!r}. {did_you_mean(metric, known)}")
    return lm_task


def scored_on_training(lm_task: ConfigurableTask, docs: Sequence[int]) -> ConfigurableTask:
    """The same task, scored on these training examples: prompts and metrics are those of the evaluation."""
    scored = copy.copy(lm_task)
    rows = lm_task.training_docs().select(docs)
    scored.dataset = {**lm_task.dataset, lm_task.config.validation_split: rows}
    return scored


def yaml_path(task: Task) -> Path:
    """Path of the YAML of ``task``.

    Raises:
        PluginError: the package or file does not exist.
    """
    package, _, inner = task.yaml.partition(":")
    spec = importlib.util.find_spec(package) if package and inner else None
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"Task {task.name!r}: {task.yaml!r} must be PACKAGE:PATH with an installed package.")
    folder = Path(spec.submodule_search_locations[0])
    path = (folder / "tasks" if package == "lm_eval" else folder) / inner
    if not path.is_file():
        raise PluginError(f"Task {task.name!r}: package {package!r} has no file {inner!r} (looked for {str(path)!r}).")
    return path


def choose_rows(total: int, limit: int | None) -> list[int]:
    """Indices of ``total`` rows: all, or ``limit`` drawn without replacement with a fixed seed, in order.

    They are drawn at random, so that neither sorted nor alternating labels bias the choice.
    """
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(random.Random(0).sample(range(total), limit))


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Disable lm-eval's progress bars, and its log below the level of errors."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level = logger.level
    bars = datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with without_task_bars():
            yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _unchanged(docs: datasets.Dataset) -> datasets.Dataset:
    return docs


_INCLUDE = re.compile(r"^include:\s*['\"]?(.+?)['\"]?\s*$", re.MULTILINE)
_IMPORT = re.compile(r"^\s*(?:from|import)\s+([\w.]+)", re.MULTILINE)
_FUNCTION = re.compile(r"!function\s+['\"]?([\w.]+)\.\w+")


def prompt_identity(tasks: Mapping[str, Task]) -> str:
    """``lm_eval <version>:<digest>`` of the prompt files of ``tasks``: YAML files, their includes, their functions, and
    what those import from their own package.

    Raises:
        PluginError: a task's YAML is missing.
    """
    contents: dict[Path, str] = {}
    content = {
        name: [
            task.shots,
            task.shots_split,
            task.shots_by,
            sorted(_content(path, contents) for path in _files(yaml_path(task), set())),
        ]
        for name, task in tasks.items()
    }
    return f"lm_eval {metadata.version('lm_eval')}:{digest(content, length=8)}"


def _files(path: Path, seen: set[Path]) -> Iterable[Path]:
    """The file and those it includes or imports, each once."""
    if path in seen or not path.is_file():
        return
    seen.add(path)
    yield path
    if path.suffix == ".py":
        for module in _IMPORT.findall(path.read_text(encoding="utf-8")):
            # Only from its own package: other packages are identified by their versions.
            for root in path.parents[1:4]:
                yield from _files(root / f"{module.replace('.', '/')}.py", seen)
        return
    text = path.read_text(encoding="utf-8")
    for name in _INCLUDE.findall(text):
        yield from _files(path.parent / name, seen)
    for module in _FUNCTION.findall(text):
        yield from _files(path.parent / f"{module.replace('.', '/')}.py", seen)


def _content(path: Path, known: dict[Path, str]) -> str:
    if path not in known:
        known[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return known[path]

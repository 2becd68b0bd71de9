"""One lm-eval task object from one YAML file, over rows we hand it.

lm-eval's ``TaskManager`` indexes every task it knows first, which takes longer than a small cell; here only the file
that is needed is read.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.api.task import Task
from mtlbench.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    import datasets
    from lm_eval.api.task import ConfigurableTask


def load_lm_task(task: Task, splits: Mapping[str, datasets.Dataset], *, name: str) -> ConfigurableTask:
    """The lm-eval task of ``task`` over ``splits``: with ``task.shots``, evaluated on exactly ``task.eval_split``.

    ``name`` is the full name, such as ``glue/rte``; lm-eval's requests carry it as ``task_name``. The YAML's
    ``process_docs`` is applied here, once.

    Raises:
        PluginError: the YAML is missing, broken, or has not the metrics the task names.
    """
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    from mtlbench.data.shots import sampler

    path = yaml_path(task)
    _compile_templates_once()
    with quiet_lm_eval():
        try:
            config = load_yaml(path)
            process = config.pop("process_docs", None) or _as_they_are
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
                # A small pool, or lm-eval would copy the whole training split into a list.
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


def yaml_path(task: Task) -> Path:
    """Where the YAML of ``task`` lies.

    Raises:
        PluginError: no such package or file.
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
    """Row numbers kept of ``total``: all, or ``limit`` drawn without replacement from a fixed seed, in order.

    Drawn rather than first or evenly spaced, so that neither sorted nor alternating labels bias the choice.
    """
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(random.Random(0).sample(range(total), limit))


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Keep lm-eval's progress bars and everything below an error of its log from the user."""
    import datasets
    from lm_eval.api import task as task_module

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task_module.tqdm
    bars = datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    task_module.tqdm = _no_bar
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        task_module.tqdm = bar
        if not bars:
            datasets.enable_progress_bars()


def _no_bar(rows: Any, **_: Any) -> Any:
    return rows


def _as_they_are(docs: datasets.Dataset) -> datasets.Dataset:
    return docs


def _compile_templates_once() -> None:
    """Compile each prompt template once, where lm-eval compiles it again for every row (0.4 ms of each)."""
    from lm_eval.utils import env

    if not hasattr(env.from_string, "cache_info"):
        env.from_string = functools.cache(env.from_string)

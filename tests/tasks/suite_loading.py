"""Tasks of the suites over demo rows or the real samples, and lm-eval's own version of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from mtlbench.api.task import Task, TaskSuite
from mtlbench.data.choose import open_source
from mtlbench.data.lm_task import load_lm_task, quiet_lm_eval, yaml_path


def loaded(suite: TaskSuite, task: Task, data: str = "demo") -> ConfigurableTask:
    """The task as a run loads it."""
    source = open_source(data, suites={suite.name: suite})
    source.check(task)
    return load_lm_task(task, source.splits(task), name=f"{suite.name}/{task.name}")


def by_name(suite: TaskSuite) -> dict[str, Task]:
    """The tasks of a suite by their short names."""
    return {task.name: task for task in suite.tasks}


def stock(yaml: Path, splits: dict[str, Any]) -> ConfigurableTask:
    """lm-eval's own task of a YAML file, with nothing changed but where its rows come from."""
    with quiet_lm_eval():
        config = load_yaml(yaml) | {"custom_dataset": lambda **_: splits, "dataset_kwargs": None}
        return ConfigurableTask(config=config)


def stock_of(suite: TaskSuite, task: Task) -> ConfigurableTask:
    """lm-eval's own task over the demo rows."""
    splits = dict(open_source("demo", suites={suite.name: suite}).splits(task))
    # A YAML with a test split gets the evaluation rows there, so that both score the same.
    return stock(yaml_path(task), splits | {"test": splits[task.eval_split]})


def prompts(lm_task: ConfigurableTask) -> list[tuple[str, str]]:
    """Context and continuation of all requests, in order."""
    with quiet_lm_eval():
        lm_task.build_all_requests()
    return [request.args for request in lm_task.instances]

"""Results of other programs, as rows that stand apart: files of lm-eval and of peft's ``method_comparison``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtlbench.api.study import ForeignRow, ForeignScore
from mtlbench.api.task import Task
from mtlbench.errors import MtlbenchError, RequestError
from mtlbench.plugins import load_suite
from mtlbench.text import local_name, one_line, without_directories

FRACTIONS = ("acc", "acc_norm", "exact_match", "em", "f1", "mcc", "pearson", "spearman", "spearmanr")
"""Metrics of lm-eval that are shown: those that 100 times are percent."""


def read_foreign(paths: Iterable[Path], *, tasks: Iterable[str]) -> tuple[ForeignRow, ...]:
    """The rows of result files, in order.

    Args:
        tasks: Full names of our tasks: a score on the data set of one has its name, any other the program's.

    Raises:
        RequestError: a file cannot be read, or is of neither kind.
    """
    ours = _data_sets(tasks)
    return tuple(_row(path, _content(path), ours) for path in paths)


def _content(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"--foreign {str(path)!r} cannot be read: {error.strerror}. Name a result file.") from error
    except ValueError as error:
        raise RequestError(f"--foreign {str(path)!r} is no JSON: {error}.") from error
    return content if isinstance(content, dict) else {}


def _row(path: Path, content: Mapping[str, Any], ours: Mapping[tuple[str, str], str]) -> ForeignRow:
    try:
        if {"results", "configs"} <= set(content):
            return _of_lm_eval(path, content, ours)
        if {"run_info", "train_info"} <= set(content):
            return _of_peft(path, content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RequestError(
            f"--foreign {str(path)!r} is not laid out as its program writes it: {type(error).__name__}: {error}."
        ) from error
    raise RequestError(
        f"--foreign {str(path)!r} is of no program that is known here. Name a results_*.json of lm-eval, or a "
        "file of peft's method_comparison/*/results."
    )


def _of_lm_eval(path: Path, content: Mapping[str, Any], ours: Mapping[tuple[str, str], str]) -> ForeignRow:
    arguments = _arguments(content.get("config", {}).get("model_args"))
    model = str(arguments.get("pretrained") or content.get("model_name") or content["config"]["model"])
    adapter = str(arguments.get("peft", ""))
    scores, left = list[ForeignScore](), dict[str, None]()
    for name, values in content["results"].items():
        config = content["configs"].get(name, {})
        known = ours.get(_data_set(str(config.get("dataset_path", "")), config.get("dataset_name")))
        counted = content.get("n-samples", {}).get(name, {})
        for metric, value in values.items():
            if "," not in metric or "_stderr," in metric or not isinstance(value, int | float):
                continue  # lm-eval writes metric,filter; anything else is no metric
            metric = metric.removesuffix(",none")
            if metric.partition(",")[0] not in FRACTIONS or not math.isfinite(value):
                left[metric] = None
                continue
            task = known or one_line(name)
            scores.append(
                ForeignScore(task=task, metric=one_line(metric), score=100 * value, rows=counted.get("effective"))
            )
    shots = sorted({str(number) for number in content.get("n-shot", {}).values()})
    limit = content["config"].get("limit")
    details = [
        f"{' and '.join(shots)}-shot" if shots else "",
        "prompts of lm-eval",
        f"at most {limit:g} examples of each task" if limit else "",
        "chat template" if content.get("chat_template") else "",
        f"adapter {local_name(adapter)}" if adapter else "no adapter",
        f"metrics that are no percent are left out: {', '.join(left)}" if left else "",
    ]
    return ForeignRow(
        label=one_line(local_name(adapter or model)),
        program=one_line(f"lm-eval {content.get('lm_eval_version', 'of an unknown version')}"),
        model=one_line(local_name(model)),
        file=path.name,
        details=_sentence(details),
        scores=tuple(scores),
    )


def _of_peft(path: Path, content: Mapping[str, Any]) -> ForeignRow:
    run, train = content["run_info"], content["train_info"]
    tested = [line for line in train["metrics"] if "test accuracy" in line]
    if not tested:
        raise RequestError(
            f"--foreign {str(path)!r} has no test accuracy: the experiment ended with status {train.get('status')!r}."
        )
    config, packages = run["train_config"], content.get("meta_info", {}).get("package_info", {})
    sets = [name for name in content.get("meta_info", {}).get("dataset_info", {}) if name != "metamath"]
    details = [
        f"{config['max_steps']} steps of batch {config['batch_size']}",
        f"{config.get('optimizer_type')}, learning rate {config.get('optimizer_kwargs', {}).get('lr')}",
        f"seed {config.get('seed')}",
        f"{config.get('dtype')}",
        "trained on MetaMathQA" if "metamath" in content.get("meta_info", {}).get("dataset_info", {}) else "",
    ]
    return ForeignRow(
        label=one_line(run["experiment_name"]),
        program=one_line(f"peft method_comparison, peft {packages.get('peft-version', 'of an unknown version')}"),
        model=one_line(local_name(config["model_id"])),
        file=path.name,
        details=_sentence(details),
        scores=(
            ForeignScore(
                task=one_line(" and ".join(sets) or "its test split"),
                metric="test accuracy",
                score=100 * float(tested[-1]["test accuracy"]),
                rows=None,
            ),
        ),
        trainable_parameters=int(train["num_trainable_params"]),
    )


def _arguments(given: Any) -> dict[str, Any]:
    """``pretrained=x,peft=y`` or a mapping, as versions of lm-eval write the arguments of a model."""
    if isinstance(given, Mapping):
        return dict(given)
    return dict(part.partition("=")[::2] for part in str(given or "").split(",") if "=" in part)


def _data_sets(tasks: Iterable[str]) -> dict[tuple[str, str], str]:
    """Data set and configuration to our task; one that two tasks share is left out."""
    found: dict[tuple[str, str], set[str]] = {}
    for name, task in _tasks(tasks):
        found.setdefault(_data_set(task.dataset, task.config), set()).add(name)
    return {data: names.pop() for data, names in found.items() if len(names) == 1}


def _tasks(tasks: Iterable[str]) -> Iterator[tuple[str, Task]]:
    wanted = set(tasks)
    for suite in sorted({name.partition("/")[0] for name in wanted}):
        try:
            offered = load_suite(suite).tasks
        except MtlbenchError:  # records may come from a machine with other packages
            continue
        yield from ((f"{suite}/{task.name}", task) for task in offered if f"{suite}/{task.name}" in wanted)


def _data_set(path: str, config: Any) -> tuple[str, str]:
    """Without the owner, which the hub added to old names."""
    return path.rpartition("/")[2].lower(), str(config or "").lower()


def _sentence(parts: Iterable[str]) -> str:
    return one_line(without_directories("; ".join(filter(None, parts))))

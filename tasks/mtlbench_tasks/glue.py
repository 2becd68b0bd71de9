"""GLUE: nine tasks with lm-eval's prompts, and STS-B in the format of T5.

Source: Wang et al. 2019, GLUE (arXiv 1804.07461); data as in ``nyu-mll/glue`` on the hub, scored on its validation
splits (the test labels are not public). The score of a task with two metrics is their mean, as on the GLUE leaderboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench import Task, TaskSuite, hookimpl
from mtlbench.api.task import Kind
from mtlbench_tasks.fingerprint import source_digest
from mtlbench_tasks.paper_tables import GLUE as TABLES
from mtlbench_tasks.paper_tables import tables_of

DATASET = "nyu-mll/glue"
LICENCE = "other: the hub card of nyu-mll/glue refers to the licence of each original data set"
ONE: Mapping[str, Kind] = {"sentence": "text", "label": (0, 1)}
PAIR: Mapping[str, Kind] = {"sentence1": "text", "sentence2": "text", "label": (0, 1)}
LABEL_NAMES: Mapping[str, tuple[str, ...]] = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
}
"""Labels of each task in the order of the hub."""


def _task(name: str, metrics: tuple[str, ...], columns: Mapping[str, Kind], source: str, **more: Any) -> Task:
    yaml = more.pop("yaml", f"lm_eval:glue/{name}/default.yaml")
    return Task(
        name=name,
        yaml=yaml,
        metrics=metrics,
        dataset=DATASET,
        config=name,
        columns=columns,
        label_names={"label": LABEL_NAMES[name]} if name in LABEL_NAMES else {},
        licence=LICENCE,
        source=source,
        tables=tables_of(name, TABLES),
        **more,
    )


TASKS = (
    _task("cola", ("mcc",), ONE, "CoLA: Warstadt et al. 2019, arXiv 1805.12471"),
    _task("sst2", ("acc",), ONE, "SST-2: Socher et al. 2013, EMNLP D13-1170"),
    _task("mrpc", ("acc", "f1"), PAIR, "MRPC: Dolan and Brockett 2005, IWP I05-5002"),
    _task(
        "qqp",
        ("acc", "f1"),
        {"question1": "text", "question2": "text", "label": (0, 1)},
        "QQP: Quora Question Pairs, released by Quora 2017",
    ),
    _task(
        "stsb",
        ("pearson", "spearman"),
        {**PAIR, "label": "number"},
        "STS-B: Cer et al. 2017, arXiv 1708.00055",
        yaml="mtlbench_tasks:yaml/stsb.yaml",
    ),
    _task(
        "mnli",
        ("acc",),
        {"premise": "text", "hypothesis": "text", "label": (0, 1, 2)},
        "MultiNLI: Williams et al. 2018, arXiv 1704.05426; matched genres",
        eval_split="validation_matched",
    ),
    _task(
        "qnli",
        ("acc",),
        {"question": "text", "sentence": "text", "label": (0, 1)},
        "QNLI: made from SQuAD, Rajpurkar et al. 2016, arXiv 1606.05250",
    ),
    _task("rte", ("acc",), PAIR, "RTE: PASCAL challenges 1, 2, 3 and 5 (Dagan et al. 2006; Bentivogli et al. 2009)"),
    _task("wnli", ("acc",), PAIR, "WNLI: made from the Winograd schemas of Levesque et al. 2012"),
)


def _demo(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    from mtlbench_tasks.demo_glue import glue_rows

    return glue_rows(config or "", split)


def _demo_fingerprint() -> str:
    return source_digest("mtlbench_tasks.demo_glue")


GLUE = TaskSuite(
    name="glue",
    title="GLUE",
    tasks=TASKS,
    demo=_demo,
    demo_fingerprint=_demo_fingerprint,
    presets={"glue/quick": {"tasks": "glue", "train_rows": 200, "eval_rows": 64, "epochs": 1.0}},
)


@hookimpl
def mtlbench_tasks() -> tuple[TaskSuite, ...]:
    """The GLUE suite."""
    return (GLUE,)

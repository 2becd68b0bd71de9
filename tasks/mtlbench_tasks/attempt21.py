"""The tasks of ATTEMPT: 21 targets, and its six sources, of which four are also targets.

Targets: eight of GLUE, five of SuperGLUE, four of MRQA 2019 (Natural Questions, HotpotQA, SearchQA, NewsQA), and
WinoGrande, Yelp-2, SciTail, PAWS-Wiki. Sources: MNLI, QNLI, QQP, SST-2, SQuAD, ReCoRD. Tasks of GLUE, SuperGLUE and
the commonsense suite are the same here, including prompt and metrics.

Source: Asai et al. 2022, ATTEMPT (arXiv 2205.11961), AkariAsai/ATTEMPT@b5121e5:attempt/data/tasks.py for data sets and
metrics; its prompts give the label numbers as answers and are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench import Task, TaskSuite, hookimpl
from mtlbench.api.task import Kind
from mtlbench_tasks import commonsense, glue, superglue
from mtlbench_tasks.fingerprint import source_digest

MRQA = "MRQA 2019: Fisch et al. 2019, arXiv 1910.09753"
OF_GLUE = ("mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "cola")
OF_SUPERGLUE = ("multirc", "boolq", "wic", "wsc", "cb", "record")


def _task(name: str, yaml: str, dataset: str, config: str | None, columns: Mapping[str, Kind], **more: Any) -> Task:
    return Task(
        name=name,
        yaml=f"mtlbench_tasks:yaml/{yaml}.yaml",
        metrics=more.pop("metrics", ("acc",)),
        dataset=dataset,
        config=config,
        columns=columns,
        **more,
    )


def _mrqa(name: str, dataset: str, source: str) -> Task:
    columns: Mapping[str, Kind] = {"context": "text", "question": "text", "answers": "texts"}
    licence = "unknown, as the hub card of mrqa-workshop/mrqa says"
    return _task(
        name,
        "mrqa",
        f"lucadiliello/{dataset}",
        None,
        columns,
        metrics=("f1",),
        licence=licence,
        source=f"{source}; {MRQA}",
    )


OTHERS = (
    _mrqa("nq", "naturalquestionsshortqa", "Natural Questions: Kwiatkowski et al. 2019, TACL Q19-1026"),
    _mrqa("hotpotqa", "hotpotqa", "HotpotQA: Yang et al. 2018, arXiv 1809.09600"),
    _mrqa("searchqa", "searchqa", "SearchQA: Dunn et al. 2017, arXiv 1704.05179"),
    _mrqa("newsqa", "newsqa", "NewsQA: Trischler et al. 2017, arXiv 1611.09830"),
    next(task for task in commonsense.TASKS if task.name == "winogrande"),
    _task(
        "yelp",
        "yelp_polarity",
        "fancyzhx/yelp_polarity",
        "plain_text",
        {"text": "text", "label": (0, 1)},
        eval_split="test",
        licence="other: the terms of the Yelp Dataset Challenge",
        source="Yelp-2: Zhang et al. 2015, arXiv 1509.01626",
    ),
    _task(
        "scitail",
        "scitail",
        "allenai/scitail",
        "tsv_format",
        {"premise": "text", "hypothesis": "text", "label": ("entails", "neutral")},
        licence="unknown: not stated by its authors on the hub",
        source="SciTail: Khot et al. 2018, AAAI",
    ),
    _task(
        "paws",
        "paws",
        "google-research-datasets/paws",
        "labeled_final",
        {"sentence1": "text", "sentence2": "text", "label": (0, 1)},
        licence="other: free for any purpose, as its authors say",
        source="PAWS-Wiki: Zhang et al. 2019, arXiv 1904.01130",
    ),
    _task(
        "squad",
        "squad",
        "rajpurkar/squad",
        "plain_text",
        {"context": "text", "question": "text", "answers.text": "texts"},
        metrics=("f1",),
        licence="CC BY-SA 4.0",
        source="SQuAD 1.1: Rajpurkar et al. 2016, arXiv 1606.05250",
    ),
)
TASKS: tuple[Task, ...] = (
    *(task for task in glue.TASKS if task.name in OF_GLUE),
    *(task for task in superglue.TASKS if task.name in OF_SUPERGLUE),
    *OTHERS,
)
SOURCES = ("mnli", "qnli", "qqp", "sst2", "squad", "record")
TARGETS = tuple(task.name for task in TASKS if task.name not in ("squad", "record"))


def _demo(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    from mtlbench_tasks.demo_attempt21 import attempt21_rows

    return attempt21_rows(dataset, config, split)


def _demo_fingerprint() -> str:
    return source_digest("mtlbench_tasks.demo_attempt21")


ATTEMPT21 = TaskSuite(
    name="attempt21",
    title="Source and target tasks of ATTEMPT",
    tasks=TASKS,
    demo=_demo,
    demo_fingerprint=_demo_fingerprint,
    presets={"attempt21/quick": {"tasks": "attempt21", "train_rows": 100, "eval_rows": 40, "epochs": 1.0}},
)


@hookimpl
def mtlbench_tasks() -> tuple[TaskSuite, ...]:
    """The suite of ATTEMPT's tasks."""
    return (ATTEMPT21,)

"""Commonsense reasoning: the eight tasks common in papers on fine-tuned language models.

Prompts are lm-eval's; every task is scored with accuracy. All are evaluated on their official validation splits, also
ARC and OpenBookQA, so that their test splits stay unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench import Task, TaskSuite, hookimpl
from mtlbench.api.task import Kind
from mtlbench_tasks.fingerprint import source_digest
from mtlbench_tasks.superglue import BOOLQ

LETTERS: Kind = ("A", "B", "C", "D", "E", "1", "2", "3", "4", "5")
CHOICES: Mapping[str, Kind] = {"choices.text": "texts", "choices.label": "texts", "answerKey": LETTERS}
ARC = "ARC: Clark et al. 2018, arXiv 1803.05457"


def _task(name: str, yaml: str, dataset: str, columns: Mapping[str, Kind], **more: Any) -> Task:
    return Task(
        name=name,
        yaml=f"lm_eval:{yaml}",
        metrics=("acc",),
        dataset=dataset,
        config=more.pop("config", None),
        columns=columns,
        tables=("peml/table-10",),
        **more,
    )


TASKS = (
    BOOLQ,
    _task(
        "piqa",
        "piqa/piqa.yaml",
        "baber/piqa",
        {"goal": "text", "sol1": "text", "sol2": "text", "label": (0, 1)},
        licence="unknown: not stated by its authors on the hub",
        source="PIQA: Bisk et al. 2020, arXiv 1911.11641",
    ),
    _task(
        "social_iqa",
        "siqa/siqa.yaml",
        "lighteval/siqa",
        {"context": "text", "question": "text", "answerA": "text", "answerB": "text", "answerC": "text",
            "label": ("1", "2", "3")},
        licence="unknown: not stated by its authors on the hub",
        source="Social IQa: Sap et al. 2019, arXiv 1904.09728",
    ),
    _task(
        "hellaswag",
        "hellaswag/hellaswag.yaml",
        "Rowan/hellaswag",
        {"activity_label": "text", "ctx_a": "text", "ctx_b": "text", "endings": "texts", "label": ("0", "1", "2", "3")},
        licence="MIT",
        source="HellaSwag: Zellers et al. 2019, arXiv 1905.07830",
    ),
    _task(
        "winogrande",
        "winogrande/default.yaml",
        "allenai/winogrande",
        {"sentence": "text", "option1": "text", "option2": "text", "answer": ("1", "2")},
        config="winogrande_xl",
        licence="unknown: not stated by its authors on the hub",
        source="WinoGrande: Sakaguchi et al. 2019, arXiv 1907.10641",
    ),
    _task(
        "arc_easy",
        "arc/arc_easy.yaml",
        "allenai/ai2_arc",
        {"question": "text", **CHOICES},
        config="ARC-Easy",
        licence="CC BY-SA 4.0",
        source=ARC,
    ),
    _task(
        "arc_challenge",
        "arc/arc_challenge.yaml",
        "allenai/ai2_arc",
        {"question": "text", **CHOICES},
        config="ARC-Challenge",
        licence="CC BY-SA 4.0",
        source=ARC,
    ),
    _task(
        "openbookqa",
        "openbookqa/openbookqa.yaml",
        "allenai/openbookqa",
        {"question_stem": "text", **CHOICES},
        config="main",
        licence="unknown, as the hub card says",
        source="OpenBookQA: Mihaylov et al. 2018, arXiv 1809.02789",
    ),
)  # fmt: skip


def _demo(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    from mtlbench_tasks.demo_commonsense import commonsense_rows

    return commonsense_rows(dataset, config, split)


def _demo_fingerprint() -> str:
    return source_digest("mtlbench_tasks.demo_commonsense")


COMMONSENSE = TaskSuite(
    name="commonsense",
    title="Commonsense reasoning",
    tasks=TASKS,
    demo=_demo,
    demo_fingerprint=_demo_fingerprint,
    presets={"commonsense/quick": {"tasks": "commonsense", "train_rows": 100, "eval_rows": 40, "epochs": 1.0}},
)


@hookimpl
def mtlbench_tasks() -> tuple[TaskSuite, ...]:
    """The commonsense suite."""
    return (COMMONSENSE,)

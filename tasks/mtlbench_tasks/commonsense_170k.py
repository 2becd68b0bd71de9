"""The joint commonsense instructions: eight tasks with the prompts of LLM-Adapters, trained together.

The 170,420 rows of ``commonsense_170k.json`` are the training sets of the eight tasks, so training on all eight with
``proportional`` mixing is training on that file, with a known task for every example. The model generates its answer
("the correct answer is ending2") and is scored on the answer word, on LLM-Adapters' test files: the official validation
splits of BoolQ, PIQA, SIQA, HellaSwag and WinoGrande, the official test splits of ARC and OpenBookQA. Its BoolQ has no
passage.

Source: Hu et al. 2023, LLM-Adapters (arXiv 2304.01933). The files are on GitHub and not on the hub: ``--data DIR`` with
``DIR/llm_adapters/commonsense/<set>/<split>.parquet``.
"""

from __future__ import annotations

from typing import Any

from mtlbench import Task, TaskSuite, hookimpl
from mtlbench_tasks.fingerprint import source_digest

DATASET = "llm_adapters/commonsense"
LICENCE = "ODC-By (DATA_LICENSE of AGI-Edgerunners/LLM-Adapters); each original data set has its own"


def _task(name: str, config: str, answers: tuple[str, ...], source: str) -> Task:
    return Task(
        name=name,
        yaml="mtlbench_tasks:yaml/commonsense_170k.yaml",
        metrics=("exact_match",),
        dataset=DATASET,
        config=config,
        eval_split="test",
        columns={"instruction": "text", "output": "text", "answer": answers},
        licence=LICENCE,
        source=f"{source}, worded by LLM-Adapters, arXiv 2304.01933",
        tables=("peml/table-6",),
    )


FOUR = ("answer1", "answer2", "answer3", "answer4")
FIVE = (*FOUR, "answer5")
TASKS = (
    _task("boolq", "boolq", ("true", "false"), "BoolQ: Clark et al. 2019, arXiv 1905.10044"),
    _task("piqa", "piqa", ("solution1", "solution2"), "PIQA: Bisk et al. 2020, arXiv 1911.11641"),
    _task("social_iqa", "social_i_qa", FOUR[:3], "Social IQa: Sap et al. 2019, arXiv 1904.09728"),
    _task(
        "hellaswag",
        "hellaswag",
        ("ending1", "ending2", "ending3", "ending4"),
        "HellaSwag: Zellers et al. 2019, arXiv 1905.07830",
    ),
    _task("winogrande", "winogrande", ("option1", "option2"), "WinoGrande: Sakaguchi et al. 2019, arXiv 1907.10641"),
    _task("arc_easy", "ARC-Easy", FIVE, "ARC: Clark et al. 2018, arXiv 1803.05457"),
    _task("arc_challenge", "ARC-Challenge", FIVE, "ARC: Clark et al. 2018, arXiv 1803.05457"),
    _task("openbookqa", "openbookqa", FOUR, "OpenBookQA: Mihaylov et al. 2018, arXiv 1809.02789"),
)


def _demo(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    from mtlbench_tasks.demo_commonsense_170k import instruction_rows

    return instruction_rows(config or "", split)


def _demo_fingerprint() -> str:
    return source_digest("mtlbench_tasks.demo_commonsense_170k")


COMMONSENSE_170K = TaskSuite(
    name="commonsense_170k",
    title="Commonsense reasoning, joint instructions",
    tasks=TASKS,
    demo=_demo,
    demo_fingerprint=_demo_fingerprint,
    presets={
        "commonsense_170k/quick": {"tasks": "commonsense_170k", "train_rows": 100, "eval_rows": 40, "epochs": 1.0}
    },
)


@hookimpl
def mtlbench_tasks() -> tuple[TaskSuite, ...]:
    """The suite of joint commonsense instructions."""
    return (COMMONSENSE_170K,)

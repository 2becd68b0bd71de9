"""SuperGLUE: eight tasks, scored on the validation splits (the test labels are not public).

Source: Wang et al. 2019, SuperGLUE (arXiv 1905.00537); data as in ``aps/super_glue`` on the hub. Prompts are lm-eval's,
metrics the leaderboard's; the score of a task with two metrics (CB, MultiRC, ReCoRD) is their mean. MultiRC and ReCoRD
use our YAML files: lm-eval's MultiRC has accuracy only, and its ReCoRD needs a module that transformers 5 lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench import Task, TaskSuite, hookimpl
from mtlbench.api.task import Kind
from mtlbench_tasks.fingerprint import source_digest
from mtlbench_tasks.paper_tables import SUPERGLUE as TABLES
from mtlbench_tasks.paper_tables import tables_of

DATASET = "aps/super_glue"
LICENCE = "other: the hub card of aps/super_glue refers to the licence of each original data set"
BINARY: Kind = (0, 1)
LABEL_NAMES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("boolq", "multirc", "wic", "wsc"), ("False", "True")),
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": ("choice1", "choice2"),
    "rte": ("entailment", "not_entailment"),
}
"""Labels of each task in the order of the hub."""


def _task(name: str, metrics: tuple[str, ...], columns: Mapping[str, Kind], source: str, **more: Any) -> Task:
    yaml, config = more.pop("yaml", f"lm_eval:super_glue/{name}/default.yaml"), more.pop("config", name)
    return Task(
        name=name,
        yaml=yaml,
        metrics=metrics,
        dataset=DATASET,
        config=config,
        columns=columns,
        label_names={"label": LABEL_NAMES[name]} if name in LABEL_NAMES else {},
        licence=LICENCE,
        source=source,
        tables=tables_of(name, TABLES),
    )


BOOLQ = _task(
    "boolq",
    ("acc",),
    {"passage": "text", "question": "text", "label": BINARY},
    "BoolQ: Clark et al. 2019, arXiv 1905.10044",
)
TASKS = (
    BOOLQ,
    _task(
        "cb",
        ("acc", "f1"),
        {"premise": "text", "hypothesis": "text", "label": (0, 1, 2)},
        "CB, the CommitmentBank: de Marneffe et al. 2019, Sinn und Bedeutung 23; f1 is the mean over the three classes",
    ),
    _task(
        "copa",
        ("acc",),
        {"premise": "text", "choice1": "text", "choice2": "text", "question": ("cause", "effect"), "label": BINARY},
        "COPA: Roemmele et al. 2011, AAAI Spring Symposium; two blanks before a choice, as lm-eval scores it",
    ),
    _task(
        "multirc",
        ("f1", "em"),
        {"paragraph": "text", "question": "text", "answer": "text", "idx.question": "number", "label": BINARY},
        "MultiRC: Khashabi et al. 2018, NAACL N18-1023; f1 over answers, em over questions",
        yaml="mtlbench_tasks:yaml/multirc.yaml",
    ),
    _task(
        "rte",
        ("acc",),
        {"premise": "text", "hypothesis": "text", "label": BINARY},
        "RTE: PASCAL challenges 1, 2, 3 and 5 (Dagan et al. 2006; Bentivogli et al. 2009)",
    ),
    _task(
        "wic",
        ("acc",),
        {"sentence1": "text", "sentence2": "text", "start1": "number", "end1": "number", "label": BINARY},
        "WiC: Pilehvar and Camacho-Collados 2019, arXiv 1808.09121",
    ),
    _task(
        "wsc",
        ("acc",),
        {"text": "text", "span1_text": "text", "span2_text": "text", "span2_index": "number", "label": BINARY},
        "WSC: Levesque et al. 2012, KR; the hub's spans repaired to lie in the text",
        config="wsc.fixed",
    ),
    _task(
        "record",
        ("f1", "em"),
        {"passage": "text", "query": "text", "entities": "texts", "answers": "texts"},
        "ReCoRD: Zhang et al. 2018, arXiv 1810.12885",
        yaml="mtlbench_tasks:yaml/record.yaml",
    ),
)


def _demo(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    from mtlbench_tasks.demo_superglue import superglue_rows

    return superglue_rows(config or "", split)


def _demo_fingerprint() -> str:
    return source_digest("mtlbench_tasks.demo_superglue")


SUPERGLUE = TaskSuite(
    name="superglue",
    title="SuperGLUE",
    tasks=TASKS,
    demo=_demo,
    demo_fingerprint=_demo_fingerprint,
    presets={"superglue/quick": {"tasks": "superglue", "train_rows": 100, "eval_rows": 40, "epochs": 1.0}},
)


@hookimpl
def mtlbench_tasks() -> tuple[TaskSuite, ...]:
    """The SuperGLUE suite."""
    return (SUPERGLUE,)

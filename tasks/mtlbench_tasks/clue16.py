"""The sixteen Chinese tasks of the TA-LoRA paper: eight sources and eight targets.

Sources: AFQMC, Amazon, THUCNews, BQ, CMNLI, CMRC 2018, SanWen, COTE-MFW. Targets, never trained on with the sources:
ChnSentiCorp, TNEWS, OCNLI, LCQMC, DRCD, C3, COTE-BD, FinRE. The paper gives only task, metric and number of shots;
prompts are ours, all in Chinese, and ``docs/suites.md`` lists our other choices.

Source: TA-LoRA, arXiv 2505.00009, Table I; most data sets are those of CLUE (Xu et al. 2020, arXiv 2004.05986).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench import Task, TaskSuite, hookimpl
from mtlbench.api.task import Kind
from mtlbench_tasks import ta_lora_tables
from mtlbench_tasks.fingerprint import source_digest
from mtlbench_tasks.relations import FINRE, SANWEN

CLUE, NLI, NRE, COTE = "clue/clue", "shibing624/nli_zh", "thunlp/Chinese_NRE", "lsvih/chinese-customer-review"
UNKNOWN = "unknown: the hub card of clue/clue says so"
ON_REQUEST = "unknown: its authors give it out on request; the hub card of shibing624/nli_zh says CC BY 4.0"
NO_LICENCE = "unknown: the repository states none"
MIT = "MIT (LICENSE of thunlp/Chinese_NRE)"
PAIR: Mapping[str, Kind] = {"sentence1": "text", "sentence2": "text", "label": (0, 1)}
INFER: Mapping[str, Kind] = {"sentence1": "text", "sentence2": "text", "label": (0, 1, 2)}
READ: Mapping[str, Kind] = {"context": "text", "question": "text", "answers.text": "texts"}
RELATE: Mapping[str, Kind] = {"head": "text", "tail": "text", "sentence": "text"}
TARGET: Mapping[str, Kind] = {"s": "text", "ot": "text"}
C3: Mapping[str, Kind] = {"context": "texts", "question": "text", "choice": "texts", "answer": "text"}


def _task(name: str, yaml: str, dataset: str, config: str | None, columns: Mapping[str, Kind], **more: Any) -> Task:
    numbers = more.pop("tables")
    if yaml == "zh_nli":
        more["label_names"] = {"label": ("neutral", "entailment", "contradiction")}
    return Task(
        name=name,
        yaml=f"mtlbench_tasks:yaml/{yaml}.yaml",
        metrics=more.pop("metrics", ("acc",)),
        dataset=dataset,
        config=config,
        columns=columns,
        tables=tuple(f"ta_lora/table-{number}" for number in numbers),
        **more,
    )


SOURCES = (
    _task("afqmc", "zh_pair", CLUE, "afqmc", PAIR, tables=(1,), licence=UNKNOWN,
        source="AFQMC, Ant Financial question matching: CLUE, arXiv 2004.05986"),
    _task("amazon", "zh_stars", "mteb/amazon_reviews_multi", "zh", {"text": "text", "label": (0, 1, 2, 3, 4)},
        tables=(1,), licence="Amazon's own: academic research only",
        source="Multilingual Amazon Reviews: Keung et al. 2020, arXiv 2010.02573"),
    _task("thucnews", "zh_thucnews", "thunlp/THUCNews", "title10", {"text": "text", "label": tuple(range(10))},
        tables=(1,), licence="unknown: its authors give it out for research on request",
        source="THUCNews: Sun et al. 2016, THUCTC; the widespread cut of ten classes of titles"),
    _task("bq", "zh_pair", NLI, "BQ", PAIR, tables=(1, 3), licence=ON_REQUEST,
        source="BQ, bank questions: Chen et al. 2018, EMNLP D18-1536"),
    _task("cmnli", "zh_nli", CLUE, "cmnli", INFER, tables=(1, 3), licence=UNKNOWN,
        source="CMNLI, translated MultiNLI and XNLI: CLUE, arXiv 2004.05986"),
    _task("cmrc2018", "zh_reading", CLUE, "cmrc2018", READ, metrics=("f1",), tables=(1, 3), licence="CC BY-SA 4.0",
        source="CMRC 2018: Cui et al. 2019, arXiv 1810.07366"),
    _task("sanwen", "zh_sanwen", NRE, "SanWen", {**RELATE, "relation": tuple(SANWEN)}, metrics=("f1",), tables=(1, 3),
        licence=MIT, source="SanWen: Xu et al. 2017, arXiv 1711.07010, as cut by Li et al. 2019, ACL P19-1430"),
    _task("cote_mfw", "zh_target", COTE, "mafengwo", TARGET, metrics=("f1",), eval_split="test", tables=(1,),
        licence=NO_LICENCE, source="COTE-MFW, travel reviews: Li et al. 2018, ACML, PMLR 95:518"),
)  # fmt: skip
TARGETS = (
    _task("chnsenticorp", "zh_sentiment", "seamew/ChnSentiCorp", None, {"text": "text", "label": (0, 1)},
        tables=(1, 2, 3), licence=NO_LICENCE, source="ChnSentiCorp: Tan and Zhang 2008"),
    _task("tnews", "zh_tnews", CLUE, "tnews", {"sentence": "text", "label": tuple(range(15))}, tables=(1, 2),
        licence=UNKNOWN, source="TNEWS, titles of Toutiao: CLUE, arXiv 2004.05986"),
    _task("ocnli", "zh_nli", CLUE, "ocnli", INFER, tables=(1, 2), licence="CC BY-NC 2.0",
        source="OCNLI: Hu et al. 2020, arXiv 2010.05444"),
    _task("lcqmc", "zh_pair", NLI, "LCQMC", PAIR, tables=(1, 2, 3), licence=ON_REQUEST,
        source="LCQMC: Liu et al. 2018, COLING C18-1166"),
    _task("drcd", "zh_reading", CLUE, "drcd", READ, metrics=("f1",), tables=(1, 2, 3), licence="CC BY-SA 3.0",
        source="DRCD, in traditional characters: Shao et al. 2018, arXiv 1806.00920"),
    _task("c3", "zh_c3", CLUE, "c3", C3, tables=(1, 2), licence="its own: non-commercial research only",
        source="C3: Sun et al. 2020, arXiv 1904.09679"),
    _task("cote_bd", "zh_target", COTE, "baidu", TARGET, metrics=("f1",), eval_split="test", tables=(1, 2, 3),
        licence=NO_LICENCE, source="COTE-BD, texts of Baidu: Li et al. 2018, ACML, PMLR 95:518"),
    _task("finre", "zh_finre", NRE, "FinRE", {**RELATE, "relation": tuple(FINRE)}, metrics=("f1",), tables=(1, 2),
        licence=MIT, source="FinRE: Li et al. 2019, ACL P19-1430"),
)  # fmt: skip


def _demo(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
    from mtlbench_tasks.demo_clue16 import clue16_rows

    return clue16_rows(dataset, config, split)


def _demo_fingerprint() -> str:
    return source_digest("mtlbench_tasks.demo_clue16")


CLUE16 = TaskSuite(
    name="clue16",
    title="Chinese tasks of TA-LoRA",
    tasks=SOURCES + TARGETS,
    demo=_demo,
    demo_fingerprint=_demo_fingerprint,
    presets={
        "clue16/quick": {"tasks": "clue16", "train_rows": 100, "eval_rows": 40, "epochs": 1.0},
        **ta_lora_tables.PRESETS,
    },
    protocols=ta_lora_tables.PROTOCOLS,
)


@hookimpl
def mtlbench_tasks() -> tuple[TaskSuite, ...]:
    """The Chinese suite."""
    return (CLUE16,)

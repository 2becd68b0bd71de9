"""The result tables of the TA-LoRA paper as requests, and their protocols.

Source: arXiv:2505.00009, Tables I to III. The paper states neither epochs nor batch size; the numbers of epochs are
those of MPT (Wang et al. 2023, arXiv:2303.02861): 5 on the sources, 20 on the targets. Shots are drawn per task.
The paper has prompts of 20 tokens in the last 14 layers; its learning rates are not stated. We interpret "F&SW"
(fast and slow weights) of Table III as follows: without the two learning rates, all parameters use the slow; without
the mechanism, each task has a separate low-rank matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = "Qwen/Qwen2.5-7B"
SOURCES = ("afqmc", "amazon", "thucnews", "bq", "cmnli", "cmrc2018", "sanwen", "cote_mfw")
TARGETS = ("chnsenticorp", "tnews", "ocnli", "lcqmc", "drcd", "c3", "cote_bd", "finre")
PAPER = "layers=14,prefix_length=20"
METHODS = f"full,houlsby,bitfit,prompt_tuning,spot,attempt,mpt,ta_lora[{PAPER}]"
SLOW = "fast_learning_rate=0.001,gate_learning_rate=0.001"
ABLATIONS = ",".join(
    f"ta_lora[{settings}]"
    for settings in (PAPER, f"{PAPER},{SLOW}", f"{PAPER},{SLOW},task_part=low_rank", f"{PAPER},zero_init=false")
)
"""Rows of Table III: the method; without two rates; without fast and slow weights; without zero-init attention."""


def _names(tasks: tuple[str, ...]) -> str:
    return ",".join(f"clue16/{task}" for task in tasks)


_UNSEEN = {"max_length": 512, "sources": _names(SOURCES), "epochs": 5.0, "adapt_epochs": 20.0}
_FEW = {"base": "ta_lora/unseen", "evals_per_run": 0, "held_out": 0.0}
PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "ta_lora/full": {
        "about": "TA-LoRA on the tasks it is trained on: all rows, 5 epochs, official evaluation splits.",
        "max_length": 512,
        "epochs": 5.0,
    },
    "ta_lora/unseen": {
        "about": "TA-LoRA on unseen tasks: 5 epochs on the eight sources, then 20 on the targets.",
        **_UNSEEN,
    },
    **{
        f"ta_lora/{k}-shot": {
            "about": f"TA-LoRA on unseen tasks with {k} training rows of each, drawn by the seed; no early stopping.",
            **_FEW,
            "k_shot": str(k),
        }
        for k in (16, 32, 64)
    },
}
_COMMON = {"model": MODEL, "methods": METHODS, "seeds": "0,1,2"}
_TOGETHER = (
    "all targets are trained together after the sources; for one target alone give it as --tasks, which trains the "
    "sources again."
)
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "ta_lora/table-1": {
        **_COMMON,
        "parts": (
            {"tasks": _names(SOURCES), "name": "ta_lora/full"},
            {"tasks": _names(TARGETS), "name": "ta_lora/unseen"},
        ),
        "notes": (_TOGETHER,),
    },
    "ta_lora/table-2": {
        **_COMMON,
        "tasks": _names(TARGETS),
        "methods": f"prompt_tuning,mpt,ta_lora[{PAPER}]",
        "parts": tuple({"name": f"ta_lora/{k}-shot"} for k in (16, 32, 64)),
        "notes": (_TOGETHER,),
    },
    "ta_lora/table-3": {
        **_COMMON,
        "methods": ABLATIONS,
        "parts": (
            {"tasks": _names(("bq", "cmnli", "cmrc2018", "sanwen")), "name": "ta_lora/full"},
            {"tasks": _names(("chnsenticorp", "lcqmc", "drcd", "cote_bd")), "name": "ta_lora/unseen"},
        ),
        "notes": (_TOGETHER,),
    },
}

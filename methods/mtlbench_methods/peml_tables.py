"""The result tables of the PEML paper as requests: backbone, tasks, methods and protocol of each.

Source: arXiv:2605.14055. Where a table's baselines were copied from another paper, its budget is that paper's. What a
paper leaves open is said in the protocol's file or in a note here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

T5, FLAN_T5 = "google-t5/t5-large", "google/flan-t5-large"
LLAMA, LLAMA_2 = "huggyllama/llama-7b", "meta-llama/Llama-2-7b-hf"
GLM = "THUDM/glm-10b"
RECENT = ("meta-llama/Meta-Llama-3-8B", "deepseek-ai/deepseek-llm-7b-base", "Qwen/Qwen2-7B")
SEEDS = {"seeds": "0,1,2"}

PREFIXES = "preembedd,lora,preembedd+lora,peml,adalora,preembedd+adalora,prefixnas+adalora"
"""Rows of Tables 1, 3, 7 and 8."""
MODULAR = "lora[rank=8],molora,poly,mhr,cpoly,peml[arch_update=joint]"
"""Rows of Tables 4 and 9: four experts or skills of rank 2, and a LoRA of as many parameters. MOE-LoRA is ``molora``,
whose experts the tokens choose: :class:`~mtlbench_methods.molora.MoLora` says why."""
GLUE_SEVEN = "glue/sst2,glue/mrpc,glue/rte,glue/cola,glue/qqp,glue/wnli,glue/qnli"
GLUE_EIGHT = "glue/cola,glue/mnli,glue/mrpc,glue/qnli,glue/qqp,glue/rte,glue/sst2,glue/stsb"
SUPERGLUE_SIX = "superglue/boolq,superglue/rte,superglue/copa,superglue/multirc,superglue/wic,superglue/wsc"
SUPERGLUE_SEVEN = f"superglue/cb,{SUPERGLUE_SIX}"
SUPERGLUE_FIVE = "superglue/boolq,superglue/copa,superglue/rte,superglue/wsc,superglue/wic"

ACCURACY = (
    "the paper's values look like accuracy for every task; here CoLA scores Matthews correlation, and MRPC, QQP, CB "
    "and MultiRC the mean of their two metrics."
)
MOE_LORA = (
    "MOE-LoRA, copied from the C-Poly paper, is run as molora, routed by token as the work it goes back to; its gate "
    "is not published, and molora[gate=task] is the other reading."
)
JOINT = "no rows are held out, so PEML updates its logits on training batches, as its Algorithm 1 is printed."
TABLES: Mapping[str, Mapping[str, Any]] = {
    "peml/table-1": {
        **SEEDS, "model": T5, "tasks": GLUE_SEVEN, "methods": PREFIXES, "name": "peml_metric", "notes": (ACCURACY,),
    },
    "peml/table-2": {
        **SEEDS, "model": LLAMA_2, "tasks": GLUE_EIGHT, "name": "mtl_lora",
        "methods": "lora,multilora,moelora,mtl_lora,peml[arch_update=joint]",
        "notes": ("MTL-LoRA's budget on GLUE is not public; this is its commonsense one.", JOINT),
    },
    "peml/table-3": {
        **SEEDS, "model": T5, "tasks": SUPERGLUE_SIX, "methods": PREFIXES, "name": "peml_metric", "notes": (ACCURACY,),
    },
    "peml/table-4": {
        **SEEDS, "model": FLAN_T5, "tasks": SUPERGLUE_SEVEN, "methods": MODULAR, "name": "cpoly",
        "notes": (ACCURACY, JOINT, MOE_LORA),
    },
    "peml/table-5": {
        **SEEDS, "model": LLAMA, "tasks": "mmlu_superglue", "name": "mmlu_superglue",
        "methods": "full,lora[rank=96],lora[rank=160],multilora[modules=3,rank=32],multilora[modules=5,rank=32],"
        "peml[rank=96,arch_update=joint]",
        "notes": ("the papers state no budget for this table; this is that of MTL-LoRA's script.", JOINT),
    },
    "peml/table-6": {
        **SEEDS, "model": LLAMA_2, "tasks": "commonsense_170k", "name": "commonsense_170k",
        "methods": "lora[rank=32,alpha=64,dropout=0.05],dora[rank=16,alpha=32,dropout=0.05],multilora,moelora,mtl_lora,"
        "peml[arch_update=joint]",
    },
    "peml/table-7": {
        **SEEDS, "model": T5, "tasks": GLUE_SEVEN, "methods": PREFIXES, "name": "peml_metric_500",
        "notes": (ACCURACY,),
    },
    "peml/table-8": {
        **SEEDS, "model": T5, "tasks": SUPERGLUE_SIX, "methods": PREFIXES, "name": "peml_metric_300",
        "notes": (ACCURACY,),
    },
    "peml/table-9": {
        **SEEDS, "model": GLM, "tasks": SUPERGLUE_SEVEN, "methods": MODULAR, "name": "cpoly",
        "notes": (
            ACCURACY,
            JOINT,
            MOE_LORA,
            "transformers has no code for GLM-10B and code of a model repository is not run: name another --model.",
        ),
    },
    "peml/table-10": {
        **SEEDS, "methods": "peml[arch_update=joint]", "name": "mtl_lora",
        "parts": tuple(
            {"model": model, "tasks": tasks, **more}
            for model in RECENT
            for tasks, more in (
                ("mmlu_superglue/mmlu", {"name": "mmlu_superglue"}),
                ("glue", {}),
                ("superglue", {}),
                ("commonsense_170k", {"name": "commonsense_170k"}),
            )
        ),
        "notes": ("the paper states no budget for this table; this is that of MTL-LoRA's script.", JOINT),
    },
    "peml/table-11": {
        **SEEDS, "model": T5, "tasks": SUPERGLUE_FIVE, "name": "peml_metric",
        "methods": "peml[order=lora_then_prefix],peml[order=prefix_then_lora],peml",
    },
}  # fmt: skip

"""Result files as lm-eval and peft's ``method_comparison`` write them, with made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LM_EVAL: dict[str, Any] = {
    "results": {
        "rte": {"alias": "rte", "acc,none": 0.625, "acc_stderr,none": 0.03, "sample_len": 277},
        "wikitext": {"alias": "wikitext", "word_perplexity,none": 11.5, "word_perplexity_stderr,none": "N/A"},
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match,flexible-extract": 0.5},
    },
    "configs": {
        "rte": {"dataset_path": "nyu-mll/glue", "dataset_name": "rte"},
        "wikitext": {"dataset_path": "EleutherAI/wikitext_document_level", "dataset_name": "wikitext-2-raw-v1"},
        "gsm8k": {"dataset_path": "gsm8k", "dataset_name": "main"},
    },
    "n-shot": {"rte": 0, "gsm8k": 5},
    "n-samples": {"rte": {"original": 277, "effective": 100}},
    "config": {"model": "hf", "model_args": "pretrained=org/model,peft=/home/somebody/adapters/mine", "limit": 100.0},
    "model_name": "org/model",
    "lm_eval_version": "0.4.13",
}
PEFT: dict[str, Any] = {
    "run_info": {
        "experiment_name": "lora/llama-rank32",
        "train_config": {
            "model_id": "org/llama",
            "dtype": "bfloat16",
            "max_steps": 5000,
            "batch_size": 4,
            "seed": 0,
            "optimizer_type": "AdamW",
            "optimizer_kwargs": {"lr": 1e-4},
        },
    },
    "train_info": {
        "num_trainable_params": 9175040,
        "status": "success",
        "metrics": [{"step": 250, "valid accuracy": 0.34}, {"step": 5000, "test accuracy": 0.375}],
    },
    "meta_info": {"dataset_info": {"metamath": {}, "gsm8k": {}}, "package_info": {"peft-version": "0.18.0"}},
}


def write_foreign(folder: Path) -> list[Path]:
    """Both files in ``folder``."""
    paths = [folder / "lm_eval.json", folder / "peft.json"]
    for path, content in zip(paths, (LM_EVAL, PEFT), strict=True):
        path.write_text(json.dumps(content))
    return paths

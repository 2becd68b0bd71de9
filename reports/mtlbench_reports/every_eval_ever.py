"""Finished cells in the schema of Every Eval Ever (evalevalai.com): one JSON file for each cell, ``eee-KEY.json``.

The schema describes evaluations of models; here the model is a backbone with what a method trained on it. Who hands the
results in is not known to a run folder: ``source_organization_name`` says so, and is to be filled in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from mtlbench import Report, Task, hookimpl
from mtlbench.api.record import Record
from mtlbench.api.study import Row, Study
from mtlbench.errors import MtlbenchError
from mtlbench.plugins import load_suite

SCHEMA = "0.3.0"
"""Version of ``eval.schema.json`` that the files follow."""
_METRICS = {
    "acc": ("accuracy", 0.0),
    "acc_norm": ("accuracy_norm", 0.0),
    "exact_match": ("exact_match", 0.0),
    "f1": ("f1", 0.0),
    "mcc": ("matthews_correlation", -1.0),
    "pearson": ("pearson_correlation", -1.0),
    "spearman": ("spearman_correlation", -1.0),
}
"""Metric of lm-eval to its common name and its lowest value; the highest of each is 1."""
_SPLITS = {"validation": "val", "dev": "val"}


class EveryEvalEver(Report):
    """For leaderboards that collect results of many harnesses."""

    name = "every_eval_ever"

    def render(self, study: Study) -> Mapping[str, str]:
        rows = {record.key: (row, record) for table in study.tables for row in table.rows for record in row.records}
        return {
            f"eee-{key}.json": json.dumps(_evaluation(row, record), indent=1, ensure_ascii=False) + "\n"
            for key, (row, record) in rows.items()
            if record.status == "ok" and record.scores
        }


@hookimpl
def mtlbench_reports() -> Iterable[Report]:
    return [EveryEvalEver()]


def _evaluation(row: Row, record: Record) -> dict[str, Any]:
    cell, provenance = record.cell, record.provenance
    versions = provenance.get("versions", {})
    suites = "+".join(dict.fromkeys(task.partition("/")[0] for task in cell.scored))
    finished = str(provenance.get("finished", "unknown"))
    return {
        "schema_version": SCHEMA,
        "evaluation_id": f"{suites}/{cell.model}/{record.key}",
        "evaluation_timestamp": str(provenance.get("started", "unknown")),
        "retrieved_timestamp": finished,
        "source_metadata": {
            "source_name": "mtlbench",
            "source_type": "evaluation_run",
            "source_organization_name": "not stated",
            "evaluator_relationship": "other",
        },
        "model_info": {
            "name": f"{row.label} on {cell.model}",
            "id": cell.model,
            "inference_engine": {"name": "mtlbench", "version": versions.get("mtlbench", "unknown")},
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                **_text({"method": cell.method, "settings": dict(cell.settings), "seed": cell.seed}),
                **_text({"trained_on": list(cell.tasks), "weights": provenance.get("backbone_fingerprint")}),
                **_text({"trainable_parameters": record.costs.trainable_parameters if record.costs else None}),
            },
        },
        "eval_library": {
            "name": "lm_eval",
            "version": versions.get("lm_eval", "unknown"),
            "additional_details": _text(
                {"run_by": f"mtlbench {versions.get('mtlbench', 'unknown')}", "protocol": cell.protocol.hash()}
            ),
        },
        "evaluation_results": list(_results(record)),
    }


def _results(record: Record) -> Iterator[dict[str, Any]]:
    for name, score in record.scores.items():
        for metric, value in score.metrics.items():
            if not math.isfinite(value):
                continue
            common, low = _METRICS.get(metric.partition(",")[0], (None, None))
            yield {
                "evaluation_result_id": f"{record.key}:{name}:{metric}",
                "evaluation_name": name,
                "source_data": _source(record, name),
                "metric_config": {
                    "metric_id": common or f"lm_eval.{metric}",
                    "metric_name": metric,
                    "metric_unit": "proportion" if common else "as lm-eval gives it",
                    "lower_is_better": False,
                    "score_type": "continuous",
                    "min_score": low,
                    "max_score": 1.0 if common else None,
                },
                "score_details": {"score": value, "uncertainty": {"num_samples": score.rows}},
                "generation_config": {
                    "additional_details": _text(
                        {
                            "max_length": record.cell.protocol.max_length,
                            "chat_template": record.cell.protocol.chat_template,
                            "prompts": record.cell.protocol.prompts,
                        }
                    )
                },
            }


def _source(record: Record, name: str) -> dict[str, Any]:
    """Where the evaluation examples came from; rows that were generated or lay in a folder are not the hub's."""
    protocol, details = record.cell.protocol, _text({"data": record.cell.protocol.data})
    task = _task(name)
    if protocol.data.startswith("demo"):
        return {"dataset_name": f"{name}: demo data", "source_type": "other", "additional_details": details}
    if task is None or not protocol.data.startswith("hub"):
        return {"dataset_name": name, "source_type": "other", "additional_details": details}
    split = "train" if protocol.holdout or protocol.eval_from_train else task.eval_split
    return {
        "dataset_name": f"{task.dataset}/{task.config}" if task.config else task.dataset,
        "source_type": "hf_dataset",
        "hf_repo": task.dataset,
        "hf_split": _SPLITS.get(split, split),
        "samples_number": record.scores[name].rows,
        "additional_details": details,
    }


@cache
def _task(name: str) -> Task | None:
    """The task of an installed suite; a record may come from a machine with others."""
    suite, _, task = name.partition("/")
    try:
        return next((one for one in load_suite(suite).tasks if one.name == task), None)
    except MtlbenchError:
        return None


def _text(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as the schema wants details: text; those that are not known are left out."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in values.items()
        if value is not None
    }

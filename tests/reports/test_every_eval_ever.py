"""The export to Every Eval Ever: what its schema asks for, and no claim that a run folder cannot make."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
from record_builder import PROTOCOL, cell, done, failed

from mtlbench.plugins import load_report
from mtlbench.results.study import study_of

PROVENANCE = {"versions": {"lm_eval": "0.4.13", "mtlbench": "0.1.0"}, "started": 1.5, "finished": 2.5}


def exported(*records: Any) -> dict[str, Any]:
    made = load_report("every_eval_ever").render(study_of(records))
    return {name: json.loads(text) for name, text in made.items()}


def hub(**changes: Any) -> Any:
    of = cell(model="org/model", protocol=replace(PROTOCOL, data="hub:1", **changes))
    return done(of, 80.0, 40.0, provenance=PROVENANCE)


def test_a_file_for_each_cell_with_scores_and_a_result_for_each_metric() -> None:
    record = hub()
    files = exported(record, failed(cell("peml")))
    assert list(files) == [f"eee-{record.key}.json"]
    (content,) = files.values()
    assert content["evaluation_id"] == f"glue/org/model/{record.key}"
    assert (content["retrieved_timestamp"], content["eval_library"]["version"]) == ("2.5", "0.4.13")
    assert content["model_info"]["id"] == "org/model" and content["model_info"]["name"] == "lora on org/model"
    rte, cola = content["evaluation_results"]
    assert rte["score_details"] == {"score": 0.8, "uncertainty": {"num_samples": 200}}
    assert rte["metric_config"]["metric_id"] == "accuracy" and rte["metric_config"]["min_score"] == 0.0
    assert cola["metric_config"]["metric_id"] == "matthews_correlation" and cola["metric_config"]["min_score"] == -1.0
    assert rte["source_data"] | {"additional_details": {}} == {
        "dataset_name": "nyu-mll/glue/rte",
        "source_type": "hf_dataset",
        "hf_repo": "nyu-mll/glue",
        "hf_split": "val",
        "samples_number": 200,
        "additional_details": {},
    }
    assert all(isinstance(value, str) for value in content["model_info"]["additional_details"].values())


def test_rows_that_are_no_data_set_of_the_hub_are_not_said_to_be() -> None:
    for data, name in (("demo:1", "glue/rte: demo data"), ("folder:1", "glue/rte")):
        (content,) = exported(done(cell(protocol=replace(PROTOCOL, data=data)), 80.0, 40.0)).values()
        source = content["evaluation_results"][0]["source_data"]
        assert (source["source_type"], source["dataset_name"]) == ("other", name)
    (content,) = exported(hub(holdout=0.1)).values()
    assert content["evaluation_results"][0]["source_data"]["hf_split"] == "train", "the rows are training rows"


def test_numbers_that_are_none_are_left_out() -> None:
    record = hub()
    scores = dict(record.scores)
    scores["glue/rte"] = replace(scores["glue/rte"], metrics={"acc": math.nan, "my_metric": 3.0})
    (content,) = exported(replace(record, scores=scores)).values()
    rte = [result for result in content["evaluation_results"] if result["evaluation_name"] == "glue/rte"]
    assert [result["metric_config"]["metric_id"] for result in rte] == ["lm_eval.my_metric"]
    assert rte[0]["metric_config"]["max_score"] is None


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("every_eval_ever", "jsonschema"))), reason="every-eval-ever is not installed"
)
def test_the_schema_itself_is_content() -> None:
    from jsonschema import Draft7Validator

    schema = json.loads((resources.files("every_eval_ever") / "schemas" / "eval.schema.json").read_text())
    bare = done(cell(), 80.0, 40.0)
    for content in exported(hub(), bare).values():
        assert content["schema_version"] == schema["version"]
        assert [error.message for error in Draft7Validator(schema).iter_errors(content)] == []

"""Results of other programs: read, marked, apart from our rows in every report, and never compared with them."""

from __future__ import annotations

import copy
import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from foreign_files import LM_EVAL, PEFT, write_foreign
from record_builder import cell, done

from mtlbench.api.study import ForeignRow, Study
from mtlbench.errors import RequestError
from mtlbench.plugins import load_report
from mtlbench.results.data.foreign import read_foreign
from mtlbench.results.data.score_table import study_html, study_lines
from mtlbench.results.formatting import FOREIGN
from mtlbench.results.study import study_of

TASKS = ("glue/rte", "glue/cola")


@pytest.fixture
def rows(tmp_path: Path) -> tuple[ForeignRow, ...]:
    return read_foreign(write_foreign(tmp_path), tasks=TASKS)


def study(rows: tuple[ForeignRow, ...]) -> Study:
    return replace(study_of([done(cell(seed=s), 60.0, 20.0) for s in (0, 1)]), foreign=rows)


def test_scores_on_our_data_sets_have_our_names_and_all_are_percent(rows: tuple[ForeignRow, ...]) -> None:
    lm_eval, peft = rows
    assert [(one.task, one.metric, one.score, one.rows) for one in lm_eval.scores] == [
        ("glue/rte", "acc", 62.5, 100),
        ("gsm8k", "exact_match,strict-match", 25.0, None),
        ("gsm8k", "exact_match,flexible-extract", 50.0, None),
    ]
    assert (lm_eval.label, lm_eval.program, lm_eval.model) == ("mine", "lm-eval 0.4.13", "org/model")
    for word in ("0 and 5-shot", "at most 100 examples", "adapter mine", "left out: word_perplexity"):
        assert word in lm_eval.details
    assert "somebody" not in str(lm_eval), "no directory of a machine is shown"
    assert [(one.task, one.score) for one in peft.scores] == [("gsm8k", 37.5)]
    assert (peft.label, peft.trainable_parameters) == ("lora/llama-rank32", 9175040)
    assert "peft 0.18.0" in peft.program and "5000 steps of batch 4" in peft.details


def test_other_layouts_of_lm_eval_are_read(tmp_path: Path) -> None:
    content = copy.deepcopy(LM_EVAL)
    content["config"] = {"model": "hf", "model_args": {"pretrained": "org/model"}, "limit": None}
    del content["lm_eval_version"], content["n-samples"]
    content["configs"]["rte"]["dataset_path"] = "glue"
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    (row,) = read_foreign([path], tasks=TASKS)
    assert (row.label, row.program) == ("org/model", "lm-eval of an unknown version")
    assert row.scores[0].task == "glue/rte" and row.scores[0].rows is None and "no adapter" in row.details


def test_every_report_shows_them_apart_and_marked(rows: tuple[ForeignRow, ...]) -> None:
    with_rows, without = study(rows), study(())
    for name, document in (("markdown", "report.md"), ("html", "report.html"), ("latex", "tables.tex")):
        text = str(load_report(name).render(with_rows)[document])
        before, after = text.rsplit("Foreign rows were measured", 1)
        plain = after.replace("\\_", "_").replace("\\hspace{0pt}", "")
        for word in ("glue/rte", "62.5", "exact_match", "lm-eval 0.4.13", "37.5", "5000 steps"):
            assert word in plain, (name, word)
        assert "62.5" not in before and "Foreign rows were" not in str(load_report(name).render(without)[document])
    made = load_report("csv").render(with_rows)
    lines = list(csv.DictReader(io.StringIO(str(made["foreign.csv"]))))
    assert [line["score"] for line in lines] == ["62.5", "25.0", "50.0", "37.5"]
    assert "foreign.csv" not in load_report("csv").render(without)
    assert {name: text for name, text in made.items() if name != "foreign.csv"} == load_report("csv").render(without)
    assert FOREIGN in list(study_lines(with_rows)) and "62.5" in study_html(with_rows)


def test_names_of_files_cannot_break_a_document(tmp_path: Path) -> None:
    content = copy.deepcopy(PEFT)
    content["run_info"]["experiment_name"] = "<script>alert(1)</script> | \\input{x} \x1b[31m"
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    made = study(read_foreign([path], tasks=TASKS))
    assert "<script>alert" not in str(load_report("html").render(made)["report.html"])
    assert "<script>alert" not in study_html(made) and "\x1b" not in "\n".join(study_lines(made))
    assert "\\input{x}" not in str(load_report("latex").render(made)["tables.tex"])
    (line,) = [line for line in str(load_report("markdown").render(made)["report.md"]).splitlines() if "37.5" in line]
    assert line.replace("\\|", "").count("|") == 7


def without(content: dict[str, Any], *path: str) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "is of no program that is known here"),
        ('{"results": {}}', "is of no program that is known here"),
        (json.dumps(without(LM_EVAL, "config")), "not laid out as its program writes it: KeyError"),
        (json.dumps({**LM_EVAL, "results": [1]}), "not laid out"),
        (json.dumps(without(PEFT, "run_info", "train_config")), "not laid out"),
        (json.dumps({**PEFT, "train_info": {"metrics": [], "status": "failed"}}), "no test accuracy: .*'failed'"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RequestError, match=f"--foreign .*file.json.*{message}"):
        read_foreign([path], tasks=TASKS)

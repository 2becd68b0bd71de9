"""The calibration of a study's rows: over seeds and tasks, on request in short reports, always in the tidy table."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from record_builder import cell, done

from mtlbench.api.record import TaskScore
from mtlbench.api.study import Calibration, Study, TaskAnswers
from mtlbench.cli import cli
from mtlbench.plugins import load_report
from mtlbench.results.analyses.calibration import calibrated_rows, calibration_columns
from mtlbench.results.study import study_of
from mtlbench.store import RunFolder

RTE, COLA = "glue/rte", "glue/cola"
FOUND = {
    0: {RTE: Calibration(ece=0.1, brier=0.4), COLA: Calibration(ece=0.3, brier=0.6)},
    1: {RTE: Calibration(ece=0.2, brier=0.5), COLA: Calibration(ece=0.3, brier=None)},
}


def answers(calibration: Calibration) -> TaskAnswers:
    return TaskAnswers(
        documents="", count=2, items={"acc": np.zeros(2)}, constant=False, unparsed=0, undefined=0,
        calibration=calibration,
    )  # fmt: skip


def study(metric: str = "acc") -> Study:
    of_rte = TaskScore(score=60.0, metrics={metric: 0.6}, rows=2)
    records = [done(cell("lora", seed), 60.0, 20.0) for seed in (0, 1)]
    records = [replace(one, scores={**one.scores, RTE: of_rte}) for one in records]
    stored = {one.key: {task: answers(c) for task, c in FOUND[one.cell.seed].items()} for one in records}
    return study_of([*records, done(cell("peml"), 50.0, 10.0)], predictions=stored.get)


def test_columns_are_means_over_seeds_and_tasks():
    (table,) = study().tables
    (row,) = calibrated_rows(table)
    columns = {column.name: column.text(row) for column in calibration_columns(table)}
    assert columns == {
        "rte ECE": "0.150 ± 0.071",
        "rte Brier": "0.450 ± 0.071",
        "cola ECE": "0.300 ± 0.000",
        "cola Brier": "0.600",
        "mean ECE": "0.225 ± 0.035",
        "mean Brier": "0.500",
    }


def test_scores_by_length_have_none():
    (table,) = study("acc_norm").tables
    names = [column.name for column in calibration_columns(table)]
    assert names == ["cola ECE", "cola Brier"]


@pytest.mark.parametrize("shown", [False, True])
def test_short_reports_show_it_when_asked_and_long_ones_always(shown: bool):
    made = replace(study(), shows_calibration=shown)
    assert ("rte ECE" in load_report("markdown").render(made)["report.md"]) is shown
    assert ("tab:calibration" in load_report("latex").render(made)["tables.tex"]) is shown
    assert "rte ECE" in load_report("html").render(made)["report.html"]


def test_the_tidy_table_has_a_line_for_each_number():
    lines = list(csv.DictReader(io.StringIO(load_report("csv").render(study())["metrics.csv"])))
    found = {(x["seed"], x["task"], x["metric"]): x["value"] for x in lines if x["metric"] in ("ece", "brier")}
    assert found == {
        ("0", RTE, "ece"): "10.0", ("0", RTE, "brier"): "40.0", ("0", COLA, "ece"): "30.0", ("0", COLA, "brier"): "60.0",
        ("1", RTE, "ece"): "20.0", ("1", RTE, "brier"): "50.0", ("1", COLA, "ece"): "30.0",
    }  # fmt: skip


def test_the_command_shows_it_when_asked(tmp_path):
    record = done(cell(tasks=(RTE,)), 50.0)
    samples = [
        {
            "task": RTE, "doc_id": at, "doc_hash": str(at), "gold": "yes", "gold_index": 0, "prediction": "yes",
            "loglikelihoods": [-1.0, -1.0 - at], "correct": True, "metric_values": '{"acc": 1.0}',
        }
        for at in (1, 2)
    ]  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    folder.preflight()
    folder.put_request({}, [record.cell])
    folder.put_samples(record.key, samples)
    assert folder.publish(record, folder.claim(record.key))
    for words, shown in (([], False), (["--calibration"], True)):
        done_ = CliRunner().invoke(cli, ["report", str(folder.path), *words])
        assert done_.exit_code == 0, done_.output
        assert ("rte ECE" in done_.output) is shown

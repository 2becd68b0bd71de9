"""What a search leaves for people: the document, the drawing, the command, the study for Optuna's dashboard."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from xml.etree import ElementTree

import optuna
import pytest
from click.testing import CliRunner
from record_builder import cell, done
from tuning_builder import near, searched, tuning

from mtlbench.api.cell import Cell, Protocol
from mtlbench.cli import cli
from mtlbench.errors import RequestError
from mtlbench.planning.plan import make_plan
from mtlbench.results.study import study_of
from mtlbench.store import RunFolder
from mtlbench.tuning.command import check_storage, export, found_by
from mtlbench.tuning.report import documents, importances, trial_line

FILE = Path("search.json")


def test_the_command_runs_the_best_settings_with_their_effort_on_the_evaluation_split(tmp_path: Path):
    made = tuning(method="lora[alpha=8]", trials=3, pruning="median", protocol={"checkpointing": True, "steps": 30})
    outcome, _ = searched(made, tmp_path / "run")
    assert outcome.best is not None
    (file,) = RunFolder(tmp_path / "run").put_searches([found_by(made, outcome)])
    words = shlex.split(made.run_command(outcome.best.settings, search=file))
    assert words[:2] == ["mtlbench", "run"]
    shown = CliRunner().invoke(cli, ["plan", *words[2:], "--out", str(tmp_path / "none")])
    assert (
        shown.exit_code == 0
        and f"lora[alpha=8.0,learning_rate={outcome.best.settings['learning_rate']}]" in shown.output
    )
    assert words[words.index("--tuning") + 1] == str(file)
    assert words[words.index("--steps") + 1] == "30" and "--checkpointing" in words
    assert "--epochs" not in words and "--eval-from-train" not in words


def test_rows_with_another_tuning_effort_never_share_a_ranking():
    efforts = ("none", "tpe:quick:8 trials", "tpe:paper:100 trials")
    records = [
        done(cell(method, protocol=Protocol(data="demo:1", tuning=effort)), score, score)
        for effort, score in zip(efforts, (50.0, 60.0, 70.0), strict=True)
        for method in ("lora", "peml")
    ]
    tables = study_of(records).tables
    assert sorted(table.protocol.tuning for table in tables) == sorted(efforts)
    assert all({row.variant for row in table.rows} == {"lora", "peml"} for table in tables)
    assert all(f"tuning={table.protocol.tuning}" in table.title for table in tables)


def test_a_table_of_trials_says_that_it_is_not_the_evaluation_split(tmp_path: Path):
    outcome, _ = searched(tuning(trials=2), tmp_path / "run")
    study = study_of([trial.records[-1] for trial in outcome.trials])
    assert "scored on training rows kept from training" in study.title


def test_the_document_holds_history_best_and_effort(tmp_path: Path):
    made = tuning(trials=12, searches=("rank=2:8",), pruning="halving")

    def sometimes(of: Cell) -> float | None:
        return None if of.seed == 5 else near(1e-3)(of)

    outcome, _ = searched(made, tmp_path / "run", score=sometimes)
    written = documents(made, outcome, search=FILE)
    assert set(written) == {"tuning-lora.md", "tuning-lora.svg"}
    text = written["tuning-lora.md"]
    best = outcome.best
    assert best is not None and best.score is not None
    assert made.run_command(best.settings, search=FILE) in text and f"Trial {best.number} with {best.score:.2f}" in text
    rows = re.findall(r"^\| (\d+) \| .*$", text, re.MULTILINE)
    assert rows == [str(n) for n in range(12)]
    for word in (
        "demo data",
        "`tpe:quick:12 trials:halving`",
        "1 failed",
        "oom: no memory",
        "`2:8`",
        "25% of each task's",
    ):
        assert word in text, word
    so_far = [float(x) for x in re.findall(r"\| ([\d.]+) \| [\d.]+ s \|$", text, re.MULTILINE)]
    assert so_far == sorted(so_far) and so_far[-1] == pytest.approx(best.score, abs=0.01)
    drawing = ElementTree.fromstring(written["tuning-lora.svg"])
    dots = drawing.findall(".//{*}g[@id='trials']//{*}use")
    assert len(dots) == sum(trial.state == "complete" for trial in outcome.trials)
    assert drawing.find(".//{*}g[@id='best']") is not None and "demo data" in written["tuning-lora.svg"]
    assert documents(made, outcome, search=FILE) == written, "the same trials give the same bytes"
    assert "failed" in trial_line(outcome.trials[5], best) and "no memory" in trial_line(outcome.trials[5], best)


def test_importance_names_what_matters_and_is_not_told_for_few(tmp_path: Path):
    made = tuning(trials=25, searches=("dropout=0.0:0.5",))
    outcome, _ = searched(made, tmp_path / "run")
    found = importances(made.space, outcome.trials)
    assert found is not None and next(iter(found)) == "learning_rate" and sum(found.values()) == pytest.approx(1.0)
    assert importances(made.space, outcome.trials[:9]) is None
    assert (
        "fewer than 10 complete trials"
        in documents(made, searched(tuning(trials=2), tmp_path / "few")[0], search=FILE)["tuning-lora.md"]
    )


def test_without_a_complete_trial_the_document_says_so(tmp_path: Path):
    made = tuning(trials=2)
    outcome, _ = searched(made, tmp_path / "run", score=lambda of: None)
    written = documents(made, outcome, search=FILE)
    assert set(written) == {"tuning-lora.md"} and "No trial is complete." in written["tuning-lora.md"]


def test_the_study_goes_to_an_optuna_storage_once(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    check_storage(url)
    assert not (tmp_path / "study.db").exists(), "a check makes nothing"

    def sometimes(of: Cell) -> float | None:
        return None if of.seed == 1 else near(1e-3)(of)

    for trials in (3, 3, 5):
        made = tuning(trials=trials)
        outcome, _ = searched(made, tmp_path / "run", score=sometimes)
        name = export(made, outcome.trials, url)
    study = optuna.load_study(study_name=name, storage=url)
    assert len(study.trials) == 5 and study.trials[1].state == optuna.trial.TrialState.FAIL
    assert outcome.best is not None
    assert study.best_params == outcome.best.settings and study.best_value == outcome.best.score
    assert study.trials[0].duration is not None and study.trials[0].duration.total_seconds() == 2.0
    other, _ = searched(tuning(trials=3, protocol={"steps": 7}), tmp_path / "other")
    with pytest.raises(RequestError, match="holds other trials"):
        export(tuning(trials=3, protocol={"steps": 7}), other.trials, url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("tuning.db", "sqlite:///tuning.db"),
        ("sqlite://", "no file"),
        ("sqlite:///none/here/x.db", "does not exist"),
        ("odd://x", "odd"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(url: str, message: str):
    with pytest.raises(RequestError) as refused:
        check_storage(url)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_tuning_is_a_study_and_no_free_text():
    request = tuning().plan.request
    for words in ("", "two\nlines", "by hand", "study:abc"):
        with pytest.raises(RequestError, match="tuning must be none or the id of a study"):
            make_plan(type(request)(**{**vars(request), "protocol": {"tuning": words}}))


def test_importing_the_search_loads_no_torch():
    import subprocess

    code = (
        "import sys, mtlbench.tuning.command, mtlbench.tuning.command\n"
        "assert not {'torch', 'transformers', 'peft', 'sklearn', 'sqlalchemy', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""The checks of suites: ours pass, and each check finds the fault it is there for."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mtlbench.api.task import Task, TaskSuite
from mtlbench.conformance import suites
from mtlbench.conformance.kit import suites_named
from mtlbench.conformance.suites import CHECKS, suite_findings
from mtlbench.testing import check_suite

RTE = Task(
    name="rte",
    yaml="lm_eval:glue/rte/default.yaml",
    metrics=("acc",),
    dataset="toy/rte",
    config=None,
    columns={"sentence1": "text", "sentence2": "text", "label": (0, 1)},
    licence="none",
    source="this test",
)


def rows(dataset: str, config: str | None, split: str) -> list[dict]:
    return [{"sentence1": f"Fact {i} of {split}.", "sentence2": "Claim.", "label": i % 2} for i in range(6)]


def suite(demo=rows, **changed) -> TaskSuite:
    task = replace(RTE, **changed)
    return TaskSuite(name="toy", title="Toy", tasks=(task,), demo=demo, demo_fingerprint=lambda: "1")


def spoil(column: str, value: object, *, split: str):
    return lambda *words: [
        row | {column: value} if words[2] == split and i == 2 else row for i, row in enumerate(rows(*words))
    ]


PACKAGE = {
    # Trained on the label; in three of eight rows scored against another one.
    "shuffled": (
        "{{sentence1}}\\n{{sentence2}}", "process_results: !function odd.process\n",
        "def process(doc, results):\n"
        "    best = max(range(2), key=lambda i: results[i][0])\n"
        "    number = int(doc['sentence1'].split()[1])\n"
        "    return {'acc': float(best == (doc['label'] if number % 8 < 5 else 1 - doc['label']))}\n",
    ),
    # The prompt does not hold what tells the label.
    "blind": ("Fact of a kind. {{sentence2}}", "", ""),
    # Sound: the same without these faults.
    "sound": ("{{sentence1}}\\n{{sentence2}}", "", ""),
}  # fmt: skip


def packaged(kind: str, folder: Path) -> TaskSuite:
    """A suite with prompts of its own, of 40 training rows, made for the check that trains a toy model."""
    text, scoring, code = PACKAGE[kind]
    package = folder / f"odd_{kind}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "odd.py").write_text(code)
    (package / "odd.yaml").write_text(
        "task: odd\noutput_type: multiple_choice\ntraining_split: train\nvalidation_split: validation\n"
        f"doc_to_text: \"{text}\"\ndoc_to_choice: ['no', 'yes']\ndoc_to_target: label\n{scoring}"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    return suite(
        lambda d, c, split: [
            {"sentence1": f"Fact {i} of {split}.", "sentence2": "Claim.", "label": i // 2 % 2}
            for i in range(40 if split == "train" else 8)
        ],
        yaml=f"odd_{kind}:odd.yaml",
    )


@pytest.mark.parametrize(("kind", "found"), [("sound", ""), ("shuffled", "learn"), ("blind", "learn")])
def test_golds_that_are_scored_otherwise_than_trained_and_prompts_that_hide_them_are_found(
    tmp_path, monkeypatch, kind, found
):
    monkeypatch.syspath_prepend(str(tmp_path))
    if kind == "blind":  # rows of one prompt overlap, which is found first; here the training is what is tested
        monkeypatch.setitem(suites._RUN, "overlap", lambda known: None)
    findings = list(suite_findings(packaged(kind, tmp_path)))
    failed = [finding for finding in findings if not finding.ok]
    assert [finding.check for finding in failed] == ([found] if found else [])
    if failed:
        assert "a toy model trained on 24 rows scores" in failed[0].message


def test_the_training_can_be_left_out():
    assert [f.check for f in suite_findings(suite(), train=False)] == [check for check in CHECKS if check != "learn"]


def test_a_good_suite_passes_every_check():
    assert [(f.task, f.check, f.ok) for f in suite_findings(suite())] == [("toy/rte", check, True) for check in CHECKS]
    check_suite(suite())


OURS = [
    "glue",
    "superglue",
    "commonsense",
    "commonsense_170k",
    "mmlu_auxiliary",
    "mmlu_superglue",
    "clue16",
    "attempt21",
]


@pytest.mark.parametrize("name", OURS)
def test_our_suites_keep_their_promises(name):
    check_suite(name, train=False)


@pytest.mark.parametrize(
    "words",
    ["glue/stsb,superglue/record", "commonsense/winogrande", "clue16/cote_bd,clue16/finre", "mmlu_5shot/anatomy"],
)
def test_a_toy_model_learns_every_kind_of_task(words):
    for each in suites_named(words):
        check_suite(each)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OURS, "mmlu", "mmlu_5shot"])
def test_a_toy_model_learns_every_task(name):
    check_suite(name)


@pytest.mark.parametrize(
    ("broken", "check", "told"),
    [
        (suite(licence=""), "statement", "no licence"),
        (suite(columns={}), "statement", "no columns"),
        (suite(spoil("label", 7, split="train")), "splits", "row 2, column 'label'"),
        (suite(eval_split="test", demo=lambda d, c, s: rows(d, c, s) if s == "train" else []), "splits", "'test' of task 'rte' is empty"),
        (suite(yaml="lm_eval:glue/rte/none.yaml"), "load", "no file 'glue/rte/none.yaml'"),
        (suite(metrics=("accuracy",)), "load", "names the metric 'accuracy'"),
        (suite(columns={"label": (0, 1, 2)}, demo=spoil("label", 2, split="validation")), "prompts", "Row 2 of split 'validation'"),
        (suite(spoil("sentence1", "Fact 3 of train.", split="validation")), "overlap", "the first are [2]"),
        (suite(eval_split="train"), "overlap", "6 rows of split 'train'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_fault_is_found_by_the_check_that_is_there_for_it(broken, check, told):
    *before, last = suite_findings(broken)
    assert all(finding.ok for finding in before)
    assert (last.check, last.ok) == (check, False) and told in last.message
    with pytest.raises(AssertionError, match=f"1 tasks failed:\n  toy/rte, {check}: "):
        check_suite(broken)


def test_a_metric_that_does_not_prefer_right_answers_is_found(tmp_path, monkeypatch):
    package = tmp_path / "odd_metric"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "odd.py").write_text("def process(doc, results):\n    return {'acc': 1.0}\n")
    (package / "odd.yaml").write_text(
        "task: odd\noutput_type: multiple_choice\ntraining_split: train\nvalidation_split: validation\n"
        "doc_to_text: '{{sentence1}}'\ndoc_to_choice: ['a', 'b']\ndoc_to_target: label\n"
        "process_results: !function odd.process\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    *_, last = suite_findings(suite(yaml="odd_metric:odd.yaml"))
    assert (last.check, last.ok) == ("metric", False) and "right answers score 100, wrong ones 100" in last.message


def test_one_bad_task_does_not_hide_the_others():
    two = replace(suite(), tasks=(replace(RTE, name="bad", licence=""), RTE))
    findings = list(suite_findings(two))
    assert [f.check for f in findings if f.task == "toy/bad"] == ["statement"]
    assert [f.check for f in findings if f.task == "toy/rte" and f.ok] == list(CHECKS)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mtlbench", *words], capture_output=True, text=True, env={**os.environ}, timeout=300
    )


def test_the_command_checks_a_suite_by_its_name():
    done = command("check", "mmlu_auxiliary")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [
        ["ok", check, "mmlu_auxiliary/all"] for check in CHECKS
    ]


def test_the_command_takes_rows_from_a_folder_and_ends_with_1_when_they_are_not_there(tmp_path):
    done = command("check", "superglue", "--data", str(tmp_path))
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("  failed")]
    assert len(failed) == 8 and all("splits" in line and "which does not exist" in line for line in failed)


def test_single_tasks_of_several_suites_are_checked_together():
    done = command("check", "superglue/cb,clue16/tnews")
    assert done.returncode == 0, done.stdout
    assert {line.split()[2] for line in done.stdout.splitlines()} == {"superglue/cb", "clue16/tnews"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("comonsense", "Unknown method or suite 'comonsense'. Did you mean 'commonsense'?"),
        ("glue/rt", "Suite 'glue' has no task 'rt'. Did you mean 'rte'?"),
        ("lora,glue", "'glue' is a suite"),
    ],
)
def test_a_name_of_neither_is_answered_with_the_nearest_of_both(words, told):
    done = command("check", words)
    assert done.returncode == 2 and told in done.stderr and not done.stdout


def test_rows_are_no_matter_of_methods():
    done = command("check", "lora", "--data", "demo")
    assert done.returncode == 2 and "--data is for suites, and 'lora' is none" in done.stderr


def test_the_list_shows_source_licence_splits_and_metrics_of_every_task_without_torch():
    code = (
        "import sys; from mtlbench.cli import main; sys.argv = ['mtlbench', 'list', 'tasks', '-v']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'datasets', 'lm_eval', 'pandas', 'pyarrow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if " superglue/multirc" in line)
    assert "aps/super_glue multirc, train -> validation, f1 and em" in lines[at]
    assert "N18-1023" in lines[at + 1] and "licence: other" in lines[at + 1]
    assert "dev -> test, 5-shot, acc" in done.stdout
    assert "licence: MIT; tables: peml/table-10" in done.stdout
    assert "test, 5-shot from dev, acc" in done.stdout
    assert len([line for line in lines if "licence: " in line]) == 9 + 8 + 8 + 57 + 57 + 1 + 8 + 5 + 16 + 23

"""GLUE: nine tasks whose prompts, columns and metrics fit the hub's rows."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from mtlbench.data.choose import open_source
from mtlbench.data.examples import evaluation_golds, training_pairs
from mtlbench.data.lm_task import load_lm_task, yaml_path
from mtlbench_tasks.glue import GLUE, mtlbench_tasks

BY_NAME = {task.name: task for task in GLUE.tasks}
YAML = Path(importlib.util.find_spec("mtlbench_tasks").submodule_search_locations[0]) / "yaml"


def stsb():
    spec = importlib.util.spec_from_file_location("stsb_of_the_test", YAML / "stsb.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_suite_has_the_nine_tasks():
    (suite,) = mtlbench_tasks()
    assert suite is GLUE
    assert set(BY_NAME) == {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"}
    for task in GLUE.tasks:
        assert yaml_path(task).is_file()
        assert task.dataset == "nyu-mll/glue" and task.config == task.name
        assert task.licence and task.source and "label" in task.columns


def test_only_sts_b_has_a_yaml_of_ours():
    assert [task.name for task in GLUE.tasks if not task.yaml.startswith("lm_eval:")] == ["stsb"]


@pytest.mark.parametrize("task", GLUE.tasks, ids=lambda task: task.name)
def test_real_rows_load_and_every_label_is_an_answer(shared_data, task):
    source = open_source(str(shared_data), suites={"glue": GLUE})
    source.check(task)
    splits = source.splits(task)
    lm_task = load_lm_task(task, splits, name=f"glue/{task.name}")
    pairs = training_pairs(lm_task)
    assert len(pairs) == len(splits[task.train_split])
    assert all(pair.context.strip() and pair.target.startswith(" ") for pair in pairs)
    answers = {pair.target.strip() for pair in pairs}
    assert answers == {str(choice) for choice in lm_task.doc_to_choice(lm_task.eval_docs[0])}
    assert len(evaluation_golds(lm_task)) == len(splits[task.eval_split])
    texts = [splits["train"][column][0] for column in task.columns if column != "label"]
    assert all(text.strip().rstrip(".") in pairs[0].context for text in texts)


@pytest.mark.parametrize("task", GLUE.tasks, ids=lambda task: task.name)
def test_demo_rows_load_and_every_label_is_an_answer(task):
    source = open_source("demo", suites={"glue": GLUE})
    source.check(task)
    lm_task = load_lm_task(task, source.splits(task), name=f"glue/{task.name}")
    assert {pair.target.strip() for pair in training_pairs(lm_task)} <= set(lm_task.doc_to_choice(lm_task.eval_docs[0]))
    assert len(set(evaluation_golds(lm_task))) > 1


def test_the_demo_is_fingerprinted_by_exactly_the_modules_it_imports(monkeypatch):
    read = []
    original = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: read.append(path) or original(path, *a, **k))
    first = GLUE.demo_fingerprint()
    monkeypatch.undo()
    assert first == GLUE.demo_fingerprint()
    code = "import sys, mtlbench_tasks.demo_glue\nprint(*(m.__file__ for n, m in sys.modules.items() if '.demo' in n))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {path for path in map(Path, loaded) if "mtlbench" in str(path) and path.name != "__init__.py"}
    assert set(read) == ours


def test_the_fingerprint_follows_the_text_of_the_generator(monkeypatch):
    first = GLUE.demo_fingerprint()
    original = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: original(path) + "#" * (path.name == "lexicon.py"))
    assert GLUE.demo_fingerprint() != first


def test_sts_b_answers_are_the_26_of_t5():
    helper = stsb()
    assert len(helper.CHOICES) == 26
    assert helper.CHOICES[:3] == ["0.0", "0.2", "0.4"] and helper.CHOICES[-1] == "5.0"


@pytest.mark.parametrize(("label", "answer"), [(0, "0.0"), (5.0, "5.0"), (2.46, "2.4"), (3.55, "3.6"), (0.09, "0.0")])
def test_sts_b_labels_are_rounded_to_the_nearest_answer(label, answer):
    helper = stsb()
    assert helper.CHOICES[helper.gold({"label": label})] == answer


@pytest.mark.parametrize("label", [-1.0, 5.1, None, "3", float("nan")])
def test_sts_b_refuses_what_is_no_similarity(label):
    with pytest.raises(ValueError, match="no similarity"):
        stsb().gold({"label": label})


def test_sts_b_scores_the_raw_label_against_the_most_likely_answer():
    results = [(-9.0, False)] * 26
    results[17] = (-0.5, True)
    assert stsb().process_results({"label": 3.3}, results) == {"pearson": (3.3, 3.4), "spearman": (3.3, 3.4)}


def test_sts_b_correlations_equal_scipys():
    from scipy.stats import pearsonr, spearmanr

    pairs = [(0.0, 0.4), (1.2, 1.0), (2.46, 3.0), (3.1, 3.0), (5.0, 3.8), (4.0, 5.0)]
    labels, predicted = zip(*pairs, strict=True)
    assert stsb().pearson(pairs) == pytest.approx(pearsonr(labels, predicted).statistic)
    assert stsb().spearman(pairs) == pytest.approx(spearmanr(labels, predicted).statistic)


def test_a_constant_prediction_correlates_with_nothing():
    pairs = [(0.0, 3.0), (2.0, 3.0), (5.0, 3.0)]
    assert stsb().pearson(pairs) == stsb().spearman(pairs) == 0.0

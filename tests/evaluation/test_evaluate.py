"""Evaluation gives lm-eval's own metrics, one sample per document, and leaves the model as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from tiny_backbones import tiny_backbone
from toy_tasks import WINOGRANDE, winogrande_rows, write

from mtlbench.api.routing import Routing
from mtlbench.data.choose import open_source
from mtlbench.data.lm_task import choose_rows, load_lm_task
from mtlbench.errors import DataError, PluginError
from mtlbench.evaluation.evaluate import evaluate
from mtlbench_tasks.glue import GLUE

BY_NAME = {task.name: task for task in GLUE.tasks}
WORDS = ["the", "rain", "did", "stop", "and", "concert", "continued", "until", "ten", "that", "was", "for", "a", "yes"]


def sentence(i, length):
    return " ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(length + i % 5))


def glue_rows(name, count):
    rows = []
    for i in range(count):
        label = [0.0, 2.46, 5.0, 3.1, 1.2][i % 5] if name == "stsb" else int(i % 3 == 0)
        texts = {c: sentence(i + len(c), 4) for c in BY_NAME[name].columns if c != "label"}
        rows.append({**texts, "label": label, "idx": i})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("rte", "mrpc", "cola", "stsb"):
        write(root, BY_NAME[name], train=glue_rows(name, 4), validation=glue_rows(name, 20))
    write(root, WINOGRANDE, train=winogrande_rows(2), validation=winogrande_rows(11))
    return root


def tasks_of(folder, *names):
    source = open_source(str(folder), suites={})
    known = {**BY_NAME, "winogrande": WINOGRANDE}
    return {f"glue/{n}": load_lm_task(known[n], source.splits(known[n]), name=f"glue/{n}") for n in names}


def run(backbone, lm_tasks, *, eval_rows=None, metrics=None):
    architecture, model, tokenizer, _ = backbone
    known = {**{f"glue/{task.name}": task.metrics for task in GLUE.tasks}, "glue/winogrande": ("acc",)}
    return evaluate(
        model,
        tokenizer,
        architecture=architecture,
        lm_tasks=lm_tasks,
        task_ids={name: i for i, name in enumerate(lm_tasks)},
        metrics=metrics or known,
        routing=Routing(),
        max_length=200,
        token_budget=1024,
        eval_rows=eval_rows,
    )


@pytest.fixture(scope="module", params=["causal", "seq2seq"])
def backbone(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, *tiny_backbone(folder, architecture=request.param), folder


def test_metrics_equal_lm_evals_own_run_with_its_stock_model(backbone, folder):
    names = ("rte", "mrpc", "cola", "stsb", "winogrande")
    ours = run(backbone, tasks_of(folder, *names))
    stock = HFLM(pretrained=str(backbone[3]), backend=backbone[0], device="cpu", dtype="float32", batch_size=4)
    theirs = evaluator.evaluate(
        lm=stock, task_dict={"tasks": tasks_of(folder, *names), "groups": {}}, bootstrap_iters=0
    )["results"]
    for name, score in ours.scores.items():
        for metric, value in score.metrics.items():
            assert value == pytest.approx(theirs[name][f"{metric},none"], abs=1e-6)
    assert set(ours.scores["glue/mrpc"].metrics) == {"acc", "f1"}
    mrpc = ours.scores["glue/mrpc"]
    assert mrpc.score == pytest.approx(50 * (mrpc.metrics["acc"] + mrpc.metrics["f1"]))
    assert ours.scores["glue/rte"].rows == 20
    assert ours.scores["glue/rte"].majority == pytest.approx(100 * 13 / 20)


def test_one_sample_per_document_from_which_the_scores_follow(backbone, folder):
    found = run(backbone, tasks_of(folder, "rte", "stsb", "winogrande"))
    assert len(found.samples) == 20 + 20 + 11
    assert {frozenset(sample) for sample in found.samples} == {frozenset(found.samples[0])}
    rte = [sample for sample in found.samples if sample["task"] == "glue/rte"]
    assert [sample["doc_id"] for sample in rte] == list(range(20))
    assert len({sample["doc_hash"] for sample in rte}) == 20
    accuracy = sum(sample["correct"] for sample in rte) / 20
    assert found.scores["glue/rte"].metrics["acc"] == pytest.approx(accuracy)
    for sample in rte:
        assert sample["prediction"] == ["True", "False"][max((0, 1), key=lambda i: sample["loglikelihoods"][i])]
        assert sample["gold"] == ["True", "False"][int(sample["doc_id"] % 3 == 0)]
        assert json.loads(sample["metric_values"]) == {"acc": float(sample["correct"])}
    stsb = [json.loads(sample["metric_values"])["pearson"] for sample in found.samples if sample["task"] == "glue/stsb"]
    assert [label for label, _ in stsb[:5]] == pytest.approx([0.0, 2.46, 5.0, 3.1, 1.2])
    winogrande = [sample for sample in found.samples if sample["task"] == "glue/winogrande"]
    assert [sample["gold"] for sample in winogrande[:2]] == ["Ann met Eve and Ann", "Ann met Eve and Eve"]


def test_fewer_rows_are_a_stable_choice_of_the_same_documents(backbone, folder):
    lm_tasks = tasks_of(folder, "rte", "mrpc")
    whole = {(s["task"], s["doc_id"]): s for s in run(backbone, lm_tasks).samples}
    part = run(backbone, lm_tasks, eval_rows=6)
    assert [s["doc_id"] for s in part.samples if s["task"] == "glue/rte"] == choose_rows(20, 6)
    assert {score.rows for score in part.scores.values()} == {6}
    for sample in part.samples:
        same = whole[sample["task"], sample["doc_id"]]
        assert sample["doc_hash"] == same["doc_hash"]
        assert sample["loglikelihoods"] == pytest.approx(same["loglikelihoods"], abs=1e-4)


def test_the_model_keeps_its_mode_and_nothing_is_printed(backbone, folder, capfd):
    model = backbone[1]
    model.train()
    try:
        run(backbone, tasks_of(folder, "rte"))
        assert model.training
    finally:
        model.eval()
    run(backbone, tasks_of(folder, "rte"))
    assert not model.training
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_bad_evaluation_label_stops_before_scoring(backbone, folder, tmp_path):
    rows = glue_rows("rte", 5)
    rows[2]["label"] = -1
    loose = replace(BY_NAME["rte"], columns={})
    write(tmp_path, loose, train=rows[:2], validation=rows)
    lm_task = load_lm_task(loose, open_source(str(tmp_path), suites={}).splits(loose), name="glue/rte")
    with pytest.raises(DataError, match="Row 2 of split 'validation' of task 'glue/rte'"):
        run(backbone, {"glue/rte": lm_task})


def test_a_sample_is_correct_with_any_of_several_right_choices(backbone, folder):
    lm_tasks = tasks_of(folder, "rte")
    lm_tasks["glue/rte"].config.doc_to_target = lambda doc: [0, 1]
    lm_tasks["glue/rte"].multiple_target = 2
    assert all(sample["correct"] for sample in run(backbone, lm_tasks).samples)


def test_an_unknown_metric_is_named(backbone, folder):
    with pytest.raises(PluginError, match="Did you mean 'acc,none'"):
        run(backbone, tasks_of(folder, "rte"), metrics={"glue/rte": ("acc,nne",)})


def test_generation_tasks_are_scored_by_their_text(backbone, tmp_path):
    boolq = replace(
        BY_NAME["rte"], name="boolq", yaml="lm_eval:super_glue/boolq/seq2seq.yaml", metrics=("exact_match",), columns={}
    )
    rows = [{"question": f"is it {i}", "passage": sentence(i, 6), "label": i % 2} for i in range(4)]
    write(tmp_path, boolq, train=rows, validation=rows)
    lm_task = load_lm_task(boolq, open_source(str(tmp_path), suites={}).splits(boolq), name="glue/boolq")
    lm_task.config.generation_kwargs["max_gen_toks"] = 4
    found = run(backbone, {"glue/boolq": lm_task}, metrics={"glue/boolq": ("exact_match",)})
    assert len(found.samples) == 4
    assert found.scores["glue/boolq"].majority is None
    assert found.scores["glue/boolq"].score == pytest.approx(25 * sum(s["correct"] for s in found.samples))
    assert [s["gold"] for s in found.samples] == [" no", " yes", " no", " yes"]

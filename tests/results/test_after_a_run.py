"""What is done with a finished run: published numbers beside it, the regression gate, reproducing, trackers, cards."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard, parse_eval_result_entries
from record_builder import PROTOCOL, cell, done

from mtlbench.cli import cli
from mtlbench.errors import MtlbenchError, RequestError
from mtlbench.files.sealed import seal
from mtlbench.results.model_card import write_card
from mtlbench.results.reproduction import FieldDifference, data_source, find_record, scores_differ
from mtlbench.store import RunFolder

SMALL = ("--tasks", "glue/rte,glue/sst2", "--steps", "4", "--train-rows", "64", "--eval-rows", "24", "--workers", "1")


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "mtlbench", *words]
    return subprocess.run(call, capture_output=True, text=True, cwd=cwd, timeout=300)


def invoke(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("after")
    words = ["--no-base", "--methods", "lora,mtl_lora,peml", *SMALL, "--seeds", "0,1", "--out", "run"]
    trackers = [name for name in ("tensorboard", "wandb", "mlflow") if _installed(name)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        done = run("run", *words, *(["--track", ",".join(trackers)] if trackers else []), cwd=path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return path / "run"


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def edited(folder: Path, to: Path, *, method: str, wrong: float) -> Path:
    """A copy of a run in which ``method`` answers a share ``wrong`` of its right answers wrongly."""
    shutil.copytree(folder, to)
    store = RunFolder(to)
    for key, record in store.records().items():
        if record.cell.method != method:
            continue
        samples, body = store.samples(key), record.to_json()
        for task in record.cell.tasks:
            mine = [s for s in samples if s["task"] == task]
            right = [s for s in mine if s["correct"]]
            for sample in right[: round(wrong * len(right))]:
                sample["correct"] = False
            share = sum(s["correct"] for s in mine) / len(mine)
            body["scores"][task] |= {
                "score": 100 * share,
                "metrics": dict.fromkeys(body["scores"][task]["metrics"], share),
            }
        store.put_samples(key, samples)
        del body["provenance"]["samples_sha256"]
        (to / "records" / f"{key}.json").write_bytes(seal(body))
    return to


# report --vs


def test_published_numbers_stand_beside_ours(folder):
    code, output = invoke("report", folder, "--vs", "peml/table-2")
    assert code == 0
    told = output[output.index("peml/table-2:") :]
    assert "differs from the paper: our backbone is demo, theirs LLaMA2-7B" in told
    assert "differs from the paper: ours is generated demo data" in told
    assert "scored on at most 24 examples per task" in told
    lines = [line.split() for line in told.splitlines() if re.match(r"  (lora|mtl_lora|peml) ", line)]
    found = {(line[0], line[2]): line for line in lines}
    assert set(found) == {(m, t) for m in ("lora", "mtl_lora", "peml") for t in ("RTE", "SST2")}
    scores = [r.scores["glue/rte"].score for r in RunFolder(folder).records().values() if r.cell.method == "lora"]
    assert found["lora", "RTE"][3:5] == ["91.70", f"{sum(scores) / 2:.2f}"]
    assert "not in this table: MultiLoRA, MoELoRA" in told
    assert "average" not in told, "the paper's average is over other tasks"


_opened: list[str] | None = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    """Audit hook: the files that are opened while ``_opened`` is a list."""
    if event == "open" and _opened is not None:
        _opened.append(Path(str(arguments[0])).name)


sys.addaudithook(_listen)


def test_a_report_beside_published_numbers_computes_its_study_once(folder, tmp_path, monkeypatch):
    predictions = {path.name for path in (folder / "samples").iterdir()}
    opened: list[str] = []
    monkeypatch.setattr(sys.modules[__name__], "_opened", opened)
    code, output = invoke("report", folder, "--to", tmp_path / "out", "--as", "markdown,csv", "--vs", "peml/table-2")
    assert code == 0 and "peml/table-2:" in output
    assert len(predictions) == 6
    assert sorted(name for name in opened if name in predictions) == sorted(predictions)


def test_published_numbers_are_compared_with_the_reference_of_the_report(folder, tmp_path):
    def gains(*options: str) -> dict[tuple[str, str], list[str]]:
        code, output = invoke("report", folder, "--to", tmp_path / "out", "--vs", "peml/table-2", *options)
        assert code == 0
        lines = output[output.index("difference to") :].splitlines()
        assert lines[0] == f"difference to {options[-1] if options else 'lora'}, over the seeds that both have"
        table = [line.split() for line in lines[2:] if re.match(r"  (lora|mtl_lora|peml) ", line)]
        return {(line[0], line[-3]): line[-2:] for line in table}

    usual, other = gains(), gains("--reference", "mtl_lora")
    assert {method for method, _ in usual} == {"mtl_lora", "peml"}
    assert {method for method, _ in other} == {"lora", "peml"}
    records = RunFolder(folder).records().values()
    means = {
        method: sum(r.scores["glue/rte"].score for r in records if r.cell.method == method) / 2
        for method in ("lora", "mtl_lora", "peml")
    }
    for method in ("lora", "peml"):
        assert other[method, "RTE"][1] == f"{means[method] - means['mtl_lora']:+.2f}"
    assert other["lora", "RTE"][0] == f"{-float(usual['mtl_lora', 'RTE'][0]):+.2f}", "the paper's, the other way round"


def test_an_unknown_published_table_is_refused_before_anything_is_rendered(folder, tmp_path):
    with pytest.raises(RequestError, match="Did you mean 'table-2'"):
        invoke("report", folder, "--to", tmp_path / "out", "--vs", "peml/tabel-2")
    assert not (tmp_path / "out").exists()


# compare


def test_the_same_run_has_not_changed(folder):
    code, output = invoke("compare", folder, folder)
    assert code == 0
    assert output.count("no significant change") == 9, "three variants, two tasks and the average"


def test_a_drop_ends_with_1_and_names_what_dropped(folder, tmp_path):
    worse = edited(folder, tmp_path / "worse", method="lora", wrong=1.0)
    code, output = invoke("compare", f"{folder}:lora", f"{worse}:lora")
    assert code == 1
    assert re.search(r"(glue/\w+|average) +\S+ +0\.00 .* DROP", output)
    code, output = invoke("compare", f"{worse}:lora", f"{folder}:lora")
    assert code == 0 and " rise" in output, "a rise is no drop"
    assert invoke("compare", folder, worse)[0] == 1


def test_variants_of_one_run_are_compared(folder):
    code, output = invoke("compare", f"{folder}:lora", f"{folder}:mtl_lora")
    assert code in (0, 1) and "average" in output


def test_runs_that_cannot_be_compared_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for path in (other / "records").glob("*.json"):
        path.unlink()
    with pytest.raises(RequestError, match="no finished variant in common"):
        invoke("compare", folder, other)
    with pytest.raises(RequestError, match="Did you mean 'lora'"):
        invoke("compare", f"{folder}:lora", f"{folder}:lra")
    with pytest.raises(RequestError, match="on both sides, or on none"):
        invoke("compare", f"{folder}:lora", folder)


# reproduce


def test_a_cell_comes_out_the_same_again_but_for_a_score_that_was_edited(folder, tmp_path):
    other = edited(folder, tmp_path / "other", method="lora", wrong=0.5)
    key = next(key for key, record in RunFolder(other).records().items() if record.cell.method == "lora")
    code, output = invoke("reproduce", other, key[:8], "--to", tmp_path / "again")
    assert code == 1
    assert re.search(r"^  glue/rte: \S+ -> \S+  \(apart \S+\)$", output, re.MULTILINE)
    for same in ("outcome", "losses", "guards", "notes", "costs"):
        assert re.search(rf"^{same}: \d+ fields?, none differ$", output, re.MULTILINE), output
    again = RunFolder(tmp_path / "again").records()[key]
    assert again.scores == RunFolder(folder).records()[key].scores, "as the run itself had it"


def test_a_tolerance_is_for_scores_alone():
    def apart(group, before, after):
        return FieldDifference(group=group, name="x", before=before, after=after)

    assert scores_differ([apart("scores", 50.0, 51.0)], tolerance=0.5)
    assert not scores_differ([apart("scores", 50.0, 51.0)], tolerance=1.0)
    assert not scores_differ([apart("losses", 1.0, 2.0), apart("environment", "a", "b")], tolerance=0)
    assert scores_differ([apart("scores", 50.0, None)], tolerance=100), "a score that is missing"
    assert scores_differ([apart("outcome", "ok", "failed")], tolerance=100)


def test_a_record_is_found_by_the_start_of_its_key(folder):
    key = next(iter(RunFolder(folder).records()))
    found = find_record(folder, key[:10])
    assert found.record.key == key and data_source(found) == "demo"
    with pytest.raises(RequestError, match="begins with 'zz': none does"):
        find_record(folder, "zz")
    with pytest.raises(RequestError, match="6 do"):
        find_record(folder, "")
    with pytest.raises(RequestError, match="neither a record nor a run folder"):
        find_record(folder / "nothing", None)


# trackers


@pytest.mark.skipif(not _installed("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_has_the_losses_and_scores_of_every_cell(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store = RunFolder(folder)
    for key, record in store.records().items():
        (path,) = (folder / "tracking" / "tensorboard").glob(f"*-{key[:8]}")
        events = EventAccumulator(str(path))
        events.Reload()
        told = [(event.step, round(event.value, 4)) for event in events.Scalars("loss")]
        assert told == [
            (line["step"], pytest.approx(line["loss"], abs=1e-3)) for line in store.steps(key) if "step" in line
        ]
        (score,) = events.Scalars("score/glue/rte")
        assert score.value == pytest.approx(record.scores["glue/rte"].score, abs=1e-3)


@pytest.mark.skipif(not _installed("mlflow"), reason="mlflow is not installed")
def test_mlflow_has_a_run_of_every_cell_with_its_settings(folder):
    from mlflow import MlflowClient

    client, store = MlflowClient(f"sqlite:///{folder / 'tracking' / 'mlflow.db'}"), RunFolder(folder)
    (experiment,) = client.search_experiments(filter_string="name = 'mtlbench-run'")
    runs = {run.info.run_name[-8:]: run for run in client.search_runs([experiment.experiment_id])}
    for key, record in store.records().items():
        told = runs.pop(key[:8])
        assert told.data.metrics["score/glue/rte"] == pytest.approx(record.scores["glue/rte"].score)
        assert told.data.params["method"] == record.cell.method and told.data.params["seed"] == str(record.cell.seed)
        losses = client.get_metric_history(told.info.run_id, "loss")
        assert len(losses) == sum("step" in line for line in store.steps(key))
    assert not runs


@pytest.mark.skipif(not _installed("wandb"), reason="wandb is not installed")
def test_weights_and_biases_has_a_run_of_every_cell(folder):
    found = [path.read_bytes() for path in (folder / "tracking" / "wandb").glob("offline-run-*/run-*.wandb")]
    records = RunFolder(folder).records()
    assert len(found) == len(records)
    for key in records:
        (data,) = (data for data in found if key[:8].encode() in data)
        assert b"score/glue/rte" in data and b"loss/glue/rte" in data


def test_a_tracker_that_cannot_be_had_is_refused_before_the_run(tmp_path):
    words = ("run", "--methods", "base", "--tasks", "glue/rte", "--out", tmp_path / "run")
    with pytest.raises(MtlbenchError, match="Did you mean 'tensorboard'"):
        invoke(*words, "--track", "tensorbord")
    for name in ("wandb", "mlflow"):
        if not _installed(name):
            with pytest.raises(MtlbenchError, match=rf"pip install 'mtlbench\[{name}\]'"):
                invoke(*words, "--track", name)
    assert not (tmp_path / "run").exists()


# export


@pytest.mark.parametrize(
    ("words", "library"),
    [
        (("--method", "lora"), "peft"),
        (("--method", "mtl_lora", "--task", "glue/sst2"), "peft"),
        (("--method", "peml"), "peft"),
        (("--method", "mtl_lora", "--form", "mtlbench"), "mtlbench"),
    ],
)
def test_the_code_in_the_card_loads_the_adapter(folder, tmp_path, words, library):
    code, output = invoke("export", folder, *words, "--seed", "1", "--to", tmp_path / "out")
    assert code == 0, output
    card = (tmp_path / "out" / "README.md").read_text()
    front = ModelCard(card).data
    assert (front.library_name, front.base_model, front.eval_results) == (library, "demo", None)
    assert front.tags == ["mtlbench", words[1]]
    store = RunFolder(folder)
    record = next(r for r in store.records().values() if r.cell.method == words[1] and r.cell.seed == 1)
    score = record.scores["glue/rte"]
    assert f"| glue/rte | {score.score:.2f} |" in card and "seeds run: 0, 1." in card
    assert "generated demo data" in card and "| steps | 4 |" in card and "Licences" in card
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    ended = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tmp_path / "out", timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()


def test_the_hub_gets_scores_on_the_whole_evaluation_split_and_no_others(tmp_path):
    (tmp_path / "record.json").write_text("{}")

    def front(**changes):
        made = done(cell(model="org/model", protocol=replace(PROTOCOL, **{"data": "hub:1", **changes})), 80.0, 40.0)
        write_card(made, [made], tmp_path, task=None)
        return ModelCard.load(tmp_path / "README.md").data

    assert [
        (r.dataset_type, r.dataset_config, r.dataset_split, r.metric_type, r.metric_value) for r in front().eval_results
    ] == [
        ("nyu-mll/glue", "rte", "validation", "acc", 0.8),
        ("nyu-mll/glue", "cola", "validation", "mcc", 0.4),
    ]
    entries = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results" / "mtlbench.yaml").read_text()))
    assert [(e.dataset_id, e.task_id, e.value) for e in entries] == [
        ("nyu-mll/glue", "rte", 80.0),
        ("nyu-mll/glue", "cola", 40.0),
    ]
    assert "seed 0" in entries[0].notes and "acc in percent, split validation" in entries[0].notes
    for changes in ({"eval_from_train": 0.25}, {"eval_rows": 100}, {"holdout": 0.1}, {"data": "demo:1"}):
        (tmp_path / ".eval_results" / "mtlbench.yaml").unlink(missing_ok=True)
        assert front(**changes).eval_results is None
        assert not (tmp_path / ".eval_results" / "mtlbench.yaml").exists()


def test_the_own_form_gives_the_trained_model_and_tells_no_machine(folder, tmp_path):
    import torch

    from mtlbench.api.record import Record
    from mtlbench.cells.rebuild import rebuild

    invoke("export", folder, "--method", "mtl_lora", "--seed", "0", "--form", "mtlbench", "--to", tmp_path / "out")
    body = json.loads((tmp_path / "out" / "record.json").read_text())
    assert not {"host", "pid"} & set(body["provenance"])
    record = Record.from_json(body)
    ids = torch.arange(5, 25)[None]
    logits = []
    for adapter in (tmp_path / "out", RunFolder(folder).adapter(record.key)):
        rebuilt = rebuild(record, adapter)
        with torch.no_grad(), rebuilt.setup.routing.of(torch.tensor([1])):
            logits.append(rebuilt.model(input_ids=ids).logits)
    assert torch.equal(*logits)

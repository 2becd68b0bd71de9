"""Probe tasks: scored before and after, never trained on, and without a trace in what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtlbench.api.record import Record
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_cell
from mtlbench.errors import RequestError
from mtlbench.observers.events import Events
from mtlbench.planning.plan import Plan, make_plan
from mtlbench.planning.request import Request
from mtlbench.results.documents import study_in
from mtlbench.store import RunFolder

WORDS = {"steps": 6, "batch_size": 8, "train_rows": 40, "eval_rows": 60, "evals_per_run": 0, "learning_rate": 3e-2}
PROBE = "glue/cola,superglue/copa"


def planned(methods: str, *, probe: str = PROBE, tasks: str = "glue/rte,glue/sst2") -> Plan:
    protocol = {**WORDS, **({"probe": probe} if probe else {})}
    return make_plan(Request(methods=methods, tasks=tasks, protocol=protocol))


class Counting(Bench):
    """Counts how often the untrained backbone is scored."""

    times = 0

    def untrained(self, cell, evaluate):
        def counted():
            self.times += 1
            return evaluate()

        return super().untrained(cell, counted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    made = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    made.preflight()
    return made


@pytest.fixture(scope="module")
def bench() -> Counting:
    return Counting(device="cpu", threads=1, data="demo")


@pytest.fixture(scope="module")
def records(folder: RunFolder, bench: Bench) -> dict[str, Record]:
    plan = planned("base,lora,mtl_lora")
    folder.put_request(plan.to_json(), plan.cells)
    made = [run_cell(cell, bench=bench, folder=folder, events=Events({})) for cell in plan.cells]
    assert [record.status for record in made] == ["ok"] * 3, [record.failure for record in made]
    for record in made:
        assert folder.publish(record, folder.claim(record.key))
    return {record.cell.method: record for record in made}


def test_the_untrained_backbone_forgets_nothing(records, bench):
    base = records["base"].probe
    assert list(base) == PROBE.split(",")
    assert all(score.before == score.after and score.forgetting == 0 for score in base.values())
    assert all(record.probe[task].before == base[task].before for record in records.values() for task in base)
    assert bench.times == 1, "it is scored once for all methods"


def test_what_is_forgotten_is_before_minus_after(records):
    scores = records["lora"].probe["glue/cola"]
    assert scores.after is not None and scores.after.rows == scores.before.rows == 60
    assert scores.forgetting == pytest.approx(scores.before.score - scores.after.score)
    assert scores.after != scores.before, "this much training changes some answer"


def test_a_method_that_routes_by_task_says_why_it_has_no_answer(records):
    for score in records["mtl_lora"].probe.values():
        assert score.after is None and score.forgetting is None
        assert score.refusal.startswith("mtl_lora routes examples by their task")


def test_probing_changes_nothing_that_is_trained_or_scored(records, folder, bench):
    (cell,) = planned("lora", probe="").cells
    alone = run_cell(cell, bench=bench, folder=folder, events=Events({}))
    probed = records["lora"]
    assert alone.key != probed.key and not alone.probe
    assert alone.scores == probed.scores and alone.notes["rows_per_task"] == probed.notes["rows_per_task"]
    one, other = (load_file(next(folder.adapter(key).glob("*.safetensors"))) for key in (alone.key, probed.key))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_record_comes_back_whole_and_one_without_a_probe_says_nothing_of_it(records):
    for record in records.values():
        assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    (cell,) = planned("lora", probe="").cells
    assert "probe" not in Record(cell=cell, status="ok").to_json()
    assert "probe" not in cell.protocol.identity()


def test_the_predictions_after_training_are_stored(records, folder):
    of = {method: {row["task"] for row in folder.samples(record.key)} for method, record in records.items()}
    trained = {"glue/rte", "glue/sst2"}
    assert of == {"base": trained | set(PROBE.split(",")), "lora": trained | set(PROBE.split(",")), "mtl_lora": trained}


def test_truncated_rows_of_a_probe_are_counted_like_those_of_a_task(tmp_path, records, bench):
    long = make_plan(
        Request(
            methods="base",
            tasks="glue/rte",
            protocol={**WORDS, "max_length": 24, "probe": "glue/mrpc", "eval_rows": 20},
        )
    ).cells[0]
    prepared = bench.prepared(long, bench.backbone(long))
    check = prepared.checks["glue/mrpc"]
    assert check.train.rows == 0 and check.evaluation is not None
    assert check.evaluation.rows == 20 and check.evaluation.cut > 0
    assert {"glue/rte", "glue/sst2", "glue/cola", "superglue/copa"} == set(records["lora"].notes["row_checks"])


def test_the_report_shows_it_apart_from_the_scores(records, folder):
    from mtlbench.plugins import load_report

    (table,) = study_in(folder, draws=0).tables
    assert table.tasks == ("glue/rte", "glue/sst2")
    text = load_report("markdown").render(study_in(folder, draws=0))["report.md"]
    forgetting = text.partition("Forgetting on tasks that were never trained on")[2].partition("Costs")[0]
    lines = {line.split("|")[1].strip(): line for line in forgetting.splitlines() if line.startswith("| ")}
    assert set(lines) == {"method", "base", "lora", "mtl_lora"} | ({"--------"} & set(lines))
    assert [part.strip() for part in lines["mtl_lora"].split("|")[2:5]] == ["–"] * 3
    assert "mtl_lora routes examples by their task" in forgetting


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"probe": "glue", "tasks": "glue/rte"}, "--probe: glue/rte is trained"),
        ({"probe": "glue/sst2", "tasks": "glue/rte,glue/sst2"}, "--probe: glue/sst2 is trained"),
        ({"probe": "attempt21/rte", "tasks": "glue/rte"}, "attempt21/rte has the data of glue/rte, which is trained"),
        ({"probe": "gleu"}, "Unknown suite 'gleu'. Did you mean 'glue'"),
        ({"probe": "glue/colo"}, "no task 'colo'. Did you mean 'cola'"),
        ({"probe": ","}, "--probe is empty"),
    ],
)
def test_a_probe_that_cannot_be_one_is_refused(words: dict[str, str], message: str):
    with pytest.raises(RequestError) as caught:
        planned("lora", **words)
    assert message in str(caught.value)


def test_a_probe_that_is_a_source_is_refused():
    protocol = {**WORDS, "sources": "glue/cola", "probe": "glue/cola"}
    with pytest.raises(RequestError, match="--probe: glue/cola is trained"):
        make_plan(Request(methods="lora", tasks="glue/rte", protocol=protocol))


def test_the_probes_data_is_part_of_the_cell_and_of_no_earlier_key():
    with_probe, without = planned("lora").cells[0], planned("lora", probe="").cells[0]
    assert with_probe.protocol.data != without.protocol.data
    assert with_probe.protocol.probe_tasks == ("glue/cola", "superglue/copa")
    assert with_probe.tasks == without.tasks


def test_trials_of_a_search_are_not_probed():
    from mtlbench.tuning.effort import read_effort
    from mtlbench.tuning.equal import make_study

    request = Request(methods="lora", tasks="glue/rte", protocol={"steps": 3, "probe": "glue/cola"})
    study = make_study(request, read_effort("quick"))
    assert {cell.protocol.probe for cell in study.trial_cells} == {""}
    assert {cell.protocol.probe for cell in study.untuned} == {"glue/cola"}


def test_the_option_reaches_the_plan(tmp_path: Path, monkeypatch):
    from click.testing import CliRunner

    from mtlbench.cli import cli

    monkeypatch.chdir(tmp_path)
    words = ["plan", "--methods", "lora", "--tasks", "glue/rte", "--probe"]
    assert CliRunner().invoke(cli, [*words, "glue/cola"]).exit_code == 0
    refused = CliRunner().invoke(cli, [*words, "glue"])
    assert "glue/rte is trained" in str(refused.exception)

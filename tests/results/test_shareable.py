"""What leaves the house names no directory of the author; moved models are found, and records of several protocols can be chosen."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from record_builder import PROTOCOL, done, failed
from record_builder import cell as make_cell

from mtlbench.backbones.names import BACKBONES, found_model, weights_digest
from mtlbench.cells.export import trained_record
from mtlbench.errors import RequestError
from mtlbench.plugins import load_report
from mtlbench.results.study import study_of
from mtlbench.store import RunFolder
from mtlbench.text import without_directories

TASKS = ("glue/rte",)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The checkpoint '/home/alice/my models/m' lacks 2", "The checkpoint 'm' lacks 2"),
        ("see /home/alice/run/logs/worker-0.log.", "see worker-0.log."),
        ("/home/a/.venv/lib/python3.11/site-packages/torch/nn/f.py:12 in g: h", "torch/nn/f.py:12 in g: h"),
        ("glue/rte and https://example.org/a/b, 1/2, n/a", "glue/rte and https://example.org/a/b, 1/2, n/a"),
    ],
)
def test_texts_lose_directories_and_nothing_else(text: str, shown: str) -> None:
    assert without_directories(text) == shown


def test_no_report_shows_where_the_author_works() -> None:
    of = {"tasks": TASKS, "model": "/home/alice_smith/models/my_model", "weights": "12ab" * 4}
    provenance = {"python": "/home/alice_smith/.venv/bin/python"}
    records = [
        replace(done(make_cell("lora", **of), 70.0), provenance=provenance),
        failed(make_cell("peml", **of), "The checkpoint '/home/alice_smith/models/my_model' lacks weights"),
    ]
    study = study_of(records, expected=[make_cell("vera", **of)], notes=lambda: ["Left out: /home/alice_smith/r.json"])
    assert study.tables[0].model == "my_model" and "my_model" in study.title
    assert {record.key for row in study.tables[0].rows for record in row.records} == {r.key for r in records}
    for name in ("markdown", "html", "latex", "csv", "charts"):
        for document, content in load_report(name).render(study).items():
            data = content if isinstance(content, bytes) else content.encode()
            assert b"alice" not in data, f"{name}: {document}"


def test_two_folders_of_one_name_are_told_apart() -> None:
    cells = [make_cell("lora", tasks=TASKS, model=f"/{at}/model", weights=at * 16) for at in "ab"]
    study = study_of([done(cell, 70.0) for cell in cells])
    assert sorted(table.model for table in study.tables) == ["model (aaaaaaaa)", "model (bbbbbbbb)"]


def test_a_model_and_a_run_that_were_moved_together_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    model = Path(shutil.copytree(BACKBONES / "demo", tmp_path / "a" / "model"))
    digest = weights_digest(str(model))
    planned = make_cell(model=str(model), weights=digest)
    store = RunFolder(tmp_path / "a" / "run")
    store.preflight()
    store.put_request({"data": "demo", **store.models_in([planned])}, [planned])
    (tmp_path / "a").rename(tmp_path / "b")
    moved, now = RunFolder(tmp_path / "b" / "run"), str(tmp_path / "b" / "model")
    assert found_model(planned, moved.model_places(planned)) == now
    again = make_cell(seed=5, model=now, weights=digest)
    known = moved.known_as([replace(planned, model=now), again, make_cell()])
    assert known[0].key == planned.key and known[1].model == str(model) and known[2] == make_cell()
    (tmp_path / "b" / "model" / "config.json").write_text("{}")
    assert found_model(planned, moved.model_places(planned)) is None, "its weights are others now"


def test_two_protocols_of_one_method_are_chosen_by_protocol_or_key() -> None:
    protocols = [replace(PROTOCOL, steps=steps) for steps in (2, 3)]
    records = [done(make_cell(tasks=TASKS, protocol=of), 70.0) for of in protocols]
    one, other = records
    with pytest.raises(RequestError, match=rf"protocol {protocols[0].hash()} \(steps=2\): seeds 0, key {one.key[:8]}"):
        trained_record(records, variant="lora", seed=0)
    assert trained_record(records, variant="lora", seed=None, protocol=protocols[1].hash()[:6]) == other
    assert trained_record(records, variant="lora", seed=0, key=one.key[:5]) == one
    with pytest.raises(RequestError, match=r"No finished cell has the protocol 'zz'. Here are: protocol"):
        trained_record(records, variant="lora", seed=0, protocol="zz")

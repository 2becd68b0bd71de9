"""`show` says what a name stands for; `forget` takes cells out of tables and status, and loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from record_builder import cell, done, failed

from mtlbench.api.cell import Cell
from mtlbench.api.record import Failure, Record
from mtlbench.cli import cli
from mtlbench.errors import RequestError
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.results.status import earlier_lines
from mtlbench.store import RunFolder


def mtlbench(*words: str) -> str:
    done = CliRunner().invoke(cli, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def publish(folder: RunFolder, record: Record) -> None:
    claim = folder.claim(record.key)
    assert claim is not None
    folder.put_samples(record.key, [{"answer": 1}])
    assert folder.publish(record, claim)
    folder.release(claim)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.preflight()
    return made


def test_a_method_is_shown_with_its_settings_and_where_they_are_explained():
    lines = mtlbench("show", "lora").splitlines()
    assert lines[0] == "method lora, of mtlbench 0.1.0 (mtlbench_methods.lora)"
    (rank,) = [line for line in lines if line.startswith("  rank ")]
    assert rank.split()[:3] == ["rank", "16", "int"]
    assert any("Hu et al. 2022" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glue", "glue/rte"),
        ("glue/quick", "train_rows: 200"),
        ("peml_holdout", "holdout        0.1    assumed"),
    ],
)
def test_suites_presets_and_protocols_are_shown(name: str, expected: str):
    assert expected in mtlbench("show", name)


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(RequestError, match="No method, suite, protocol or preset is called 'lorra'.*'lora'"):
        mtlbench("show", "lorra")


def test_methods_are_listed_with_a_line_each():
    lines = {line.split()[0]: line for line in mtlbench("list", "methods").splitlines() if line.startswith("  ")}
    assert lines["lora"].endswith("(mtlbench_methods.lora)  LoRA: one low-rank update shared by all tasks")
    assert lines["houlsby"] != lines["pfeiffer"].replace("pfeiffer", "houlsby"), "two classes of one module"


def test_a_failed_cell_is_shown_with_its_frames(folder):
    of = cell("lora", 0)
    folder.put_request({}, [of, cell("lora", 1)])
    failure = Failure(kind="plugin", message="KeyError: 'x'", next_step="Mend it.", frames=("lora.py:7 in attach: x",))
    publish(folder, replace(failed(of), failure=failure))
    text = mtlbench("show", "lora", str(folder.path))
    assert "plugin: KeyError: 'x'" in text and "    lora.py:7 in attach: x" in text and "no record yet" in text
    assert mtlbench("status", str(folder.path), "--keys").count(of.key) == 1


def test_what_is_forgotten_is_in_no_table_until_it_is_asked_for_again(folder):
    kept, wrong = cell("lora", 0), cell("mtl_lora", 0)
    folder.put_request({}, [kept])
    folder.put_request({}, [wrong, kept])
    publish(folder, done(kept, 60.0, 50.0))
    publish(folder, done(wrong, 70.0, 60.0))
    assert "mtl_lora" in mtlbench("status", str(folder.path))
    assert f"forgotten: {wrong.key} mtl_lora seed 0" in mtlbench("forget", str(folder.path), "mtl_lora")
    assert folder.expected() == [kept] and set(folder.records()) == {kept.key} and not folder.problems()
    place = folder.path / "forgotten" / wrong.key
    assert sorted(path.name for path in place.iterdir()) == ["record.json", "samples.parquet"]
    with pytest.raises(RequestError, match="No cell is of 'mtl_lora'"):
        mtlbench("forget", str(folder.path), "mtl_lora")
    folder.put_request({}, [wrong])
    assert wrong in folder.expected()
    assert folder.missing([wrong]) == [wrong]
    publish(folder, done(wrong, 71.0, 60.0))
    mtlbench("forget", str(folder.path), wrong.key[:8])
    assert sorted(path.name for path in (folder.path / "forgotten").iterdir()) == [wrong.key, f"{wrong.key}.1"]


def test_a_request_is_forgotten_with_the_cells_that_no_other_asks_for(folder):
    kept, wrong = cell("lora", 0), cell("mtl_lora", 0)
    folder.put_request({}, [kept])
    request = folder.put_request({}, [wrong, kept])
    mtlbench("forget", str(folder.path), request)
    assert folder.expected() == [kept]


def test_records_of_an_earlier_version_count_where_the_versions_are_equal_and_are_told(folder):
    (now,) = make_plan(Request(methods="lora", tasks="glue/rte")).cells
    old = now.earlier()
    assert Cell.from_json(old.to_json()).key == old.key != now.key
    folder.put_request({}, [old])
    publish(folder, Record(cell=old, status="ok"))
    assert folder.known_as([now]) == (old,)
    assert folder.known_as([replace(now, plugins={"mtlbench": "9"})])[0].sources, "of another version it does not count"
    assert folder.known_as([replace(now, seed=1)])[0].sources
    (line,) = earlier_lines([old, replace(now, seed=1)], folder.records())
    assert line.startswith("records of an earlier version of mtlbench: 1 of 2 cells.") and "--again" in line
    assert earlier_lines([now], folder.records()) == []


def test_a_failed_record_of_edited_code_does_not_count_any_more(folder):
    old, new = (replace(cell("lora", 0), sources={"methods/lora": said}) for said in ("a", "b"))
    folder.put_request({}, [old])
    publish(folder, failed(old))
    folder.put_request({}, [new])
    assert folder.asked_before([new]) == [old.key]
    assert folder.retire_failed(folder.asked_before([new])) == [old.key]
    assert folder.expected() == [new]

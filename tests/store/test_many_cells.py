"""Thousands of cells: what is equal for all is looked up once, and only files that changed are opened."""

from __future__ import annotations

import builtins
import io
import os
from importlib import metadata
from pathlib import Path

from mtlbench.api.cell import Cell, Protocol
from mtlbench.api.record import Failure, Record
from mtlbench.executors.runner import _Watch
from mtlbench.files.sealed import seal, unseal
from mtlbench.observers.events import Events
from mtlbench.planning.plan import plan_of
from mtlbench.store import RunFolder


def cells_of(count):
    return [
        Cell(method="lora", tasks=("glue/rte",), model="demo", protocol=Protocol(epochs=3), seed=seed)
        for seed in range(count)
    ]


def folder_with(path, cells):
    folder = RunFolder(path / "run")
    folder.preflight()
    folder.put_request({"data": "demo"}, cells)
    return folder


def publish(folder, cell, **more):
    claim = folder.claim(cell.key)
    assert folder.publish(Record(cell=cell, **(more or {"status": "skipped"})), claim)
    folder.release(claim)


class Opened:
    """Files below a folder that are opened in here, in whatever way."""

    def __init__(self, monkeypatch, folder):
        self.paths = []

        def counted(real):
            def opens(path, *rest, **more):
                if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(folder.path):
                    self.paths.append(str(Path(path).relative_to(folder.path)))
                return real(path, *rest, **more)

            return opens

        for module in (builtins, io, os):
            monkeypatch.setattr(module, "open", counted(module.open))


class Seen:
    """Observes a run."""

    def __init__(self):
        self.calls = []

    def watch(self, folder, cells):
        watch = _Watch(folder, cells, Events({}))
        watch._events = self
        return watch

    def cell_started(self, cell):
        self.calls.append(("started", cell.key))

    def step_logged(self, cell, line):
        self.calls.append(("step", line["step"]))

    def cell_finished(self, record):
        self.calls.append(("finished", record.key))


def test_a_plan_of_many_cells_reads_entry_points_as_often_as_one_of_few(monkeypatch):
    counts = []
    real = metadata.entry_points

    def counted(**group):
        counts[-1] += 1
        return real(**group)

    monkeypatch.setattr(metadata, "entry_points", counted)
    for seeds in (2, 100):
        counts.append(0)
        plan = plan_of(
            {
                "methods": "lora,mtl_lora,lora[rank=4]",
                "tasks": "glue/rte",
                "model": "demo",
                "seeds": ",".join(map(str, range(seeds))),
            }
        )
        assert len({cell.key for cell in plan.cells}) == 3 * seeds
    assert 0 < counts[0] == counts[1] < 10


def test_a_poll_opens_no_file_of_a_cell_that_waits(tmp_path, monkeypatch):
    cells = cells_of(60)
    folder = folder_with(tmp_path, cells)
    seen = Seen()
    watch = seen.watch(folder, cells)
    opened = Opened(monkeypatch, folder)
    watch.poll()
    assert opened.paths == [] and len(watch.missing) == 60 and not seen.calls


def test_a_poll_tells_of_starts_steps_and_ends_and_opens_files_of_these_cells_only(tmp_path, monkeypatch):
    cells = cells_of(60)
    folder = folder_with(tmp_path, cells)
    seen = Seen()
    watch = seen.watch(folder, cells)
    running, done, failed = cells[7], cells[3], cells[5]
    claim = folder.claim(running.key)
    folder.steps_file(running.key).write_text('{"step": 1}\n{"step": 2}\n{"st')
    publish(folder, done)
    publish(folder, failed, status="failed", failure=Failure(kind="oom", message="m", next_step="n"))
    with monkeypatch.context() as patch:
        opened = Opened(patch, folder)
        watch.poll()
    of_cells = {cells[number].key for number in (3, 5, 7)}
    assert {Path(path).name.partition(".")[0] for path in opened.paths} <= of_cells
    assert seen.calls == [
        ("started", done.key), ("finished", done.key), ("started", failed.key), ("finished", failed.key),
        ("started", running.key), ("step", 1), ("step", 2),
    ]  # fmt: skip
    assert watch.statuses == {"skipped": 1, "failed": 1} and len(watch.missing) == 58
    with folder.steps_file(running.key).open("a") as steps:
        steps.write('ep": 3}\n')
    folder.publish(Record(cell=running, status="skipped"), claim)
    folder.release(claim)
    watch.poll()
    assert seen.calls[-2:] == [("step", 3), ("finished", running.key)]
    assert folder.missing(cells) == [cell for cell in cells if cell.key not in of_cells]


def test_steps_of_an_attempt_that_died_between_two_polls_are_told(tmp_path):
    cells = cells_of(3)
    folder = folder_with(tmp_path, cells)
    folder.steps_file(cells[1].key).write_text('{"step": 1}\n')
    seen = Seen()
    watch = seen.watch(folder, cells)
    watch.poll()
    assert not seen.calls, "logged by an earlier run"
    with folder.steps_file(cells[1].key).open("a") as steps:
        steps.write('{"step": 2}\n')
    watch.poll()
    assert seen.calls == [("step", 2)]


def test_a_damaged_record_that_is_listed_counts_as_missing(tmp_path):
    cells = cells_of(4)
    folder = folder_with(tmp_path, cells)
    for cell in cells:
        publish(folder, cell)
    (folder.path / "records" / f"{cells[2].key}.json").write_text("{")
    assert folder.missing(cells) == [cells[2]]
    assert folder.finished() == {cell.key for cell in cells} - {cells[2].key}, "moved to quarantine"


def test_a_request_is_read_again_when_its_file_changed(tmp_path):
    cells = cells_of(5)
    folder = folder_with(tmp_path, cells)
    (path,) = (folder.path / "requests").glob("*.json")
    os.utime(path, (1, 1))
    assert folder.expected() == folder.expected() == cells
    later = cells_of(7)[5:]
    folder.put_request({"data": "demo", "n": 2}, later)
    assert folder.expected() == cells + later
    path.write_text("{")
    assert folder.expected() == later
    assert len(folder.problems()) == 1


def test_keys_do_not_depend_on_how_often_or_where_they_were_asked_for():
    whole, real = (Cell(method="lora", tasks=("a/b",), model="m", protocol=Protocol(epochs=e)) for e in (3, 3.0))
    assert whole == real and whole.key != real.key, "3 and 3.0 are different text, as ever"
    for cell in (whole, real):
        before = cell.key
        cell.protocol.identity()["prompts"] = "changed"
        assert Cell.from_json(cell.to_json()).key == before
        assert Cell.from_json(unseal(seal(cell.to_json()))).key == before
        assert type(Cell.from_json(cell.to_json()).protocol.epochs) is type(cell.protocol.epochs)

"""The rest of a run folder: requests, predictions, step logs, and folders that cannot be used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from store_builder import make_cell, make_folder, make_record, publish

from mtlbench.errors import RequestError, StoreError
from mtlbench.files.sealed import read_sealed, seal
from mtlbench.store import RunFolder, newest


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_folder(tmp_path / "run")


def test_requests_with_other_cells_share_a_folder(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    first = folder.put_request({"methods": "toy", "data": "demo"}, [make_cell(0), make_cell(1)])
    second = folder.put_request({"methods": "toy"}, [make_cell(1), make_cell(2)])
    assert folder.put_request({"methods": "toy"}, [make_cell(1), make_cell(2)]) == second != first
    assert folder.cells(first) == [make_cell(0), make_cell(1)]
    assert folder.options(first) == {"methods": "toy", "data": "demo"}
    assert {request["id"] for request in folder.requests()} == {first, second}
    assert {cell.seed for cell in folder.expected()} == {0, 1, 2} and len(folder.expected()) == 3
    with pytest.raises(StoreError, match="no request 'nothing'"):
        folder.cells("nothing")
    path = folder.path / "requests" / f"{first}.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match="damaged"):
        folder.cells(first)
    assert [request["id"] for request in folder.requests()] == [second]
    assert folder.put_request({"methods": "toy", "data": "demo"}, [make_cell(0), make_cell(1)]) == first
    assert folder.cells(first) == [make_cell(0), make_cell(1)]


def test_samples_and_steps_come_back(folder: RunFolder) -> None:
    rows = [{"task": "toy/a", "row": 0, "scores": [0.5, -1.0]}, {"task": "toy/a", "row": 1, "scores": [0.25]}]
    assert folder.samples("ab") is None
    folder.put_samples("ab", rows)
    assert folder.samples("ab") == rows
    assert folder.steps("ab") == []
    with folder.steps_file("ab").open("ab") as file:
        file.write(b'{"started": "t"}\n{"step": 1}\n{"step": 2, "lo')
        file.flush()
        assert folder.steps("ab") == [{"step": 1}]
        lines, offset = folder.steps_since("ab", 0)
        assert len(lines) == 2
        file.write(b'ss": 3.0}\n')
    assert folder.steps_since("ab", offset)[0] == [{"step": 2, "loss": 3.0}]
    with folder.steps_file("ab").open("ab") as file:
        file.write(b'torn\n{"started": "t"}\n{"step": 7}\n')
    assert folder.steps("ab") == [{"step": 7}], "only the latest attempt counts"


def test_running_tells_who_and_how_far(folder: RunFolder) -> None:
    key = make_cell().key
    assert folder.claim(key) is not None
    folder.steps_file(key).write_text('{"started": "t"}\n{"total": 40}\n{"step": 8, "loss": 1.5}\n')
    (seen,) = folder.running()
    assert (seen.key, seen.step, seen.total_steps, seen.loss) == (key, 8, 40, 1.5)
    assert seen.owner.endswith(f":{os.getpid()}")


@pytest.mark.parametrize("name", ["with space", "ünïcode ☃", "x" * 200])
def test_any_folder_name_works(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / name)
    folder.preflight()
    path = publish(folder, make_record())
    assert folder.record(path.stem) == make_record()
    assert newest(tmp_path) == folder.path


def test_a_folder_that_cannot_be_used_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for path, words in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "inside", "does not exist"),
        (tmp_path / "no" / "parent", "does not exist"),
        (tmp_path / ("x" * 300), "cannot be used"),
        (Path("/proc/run"), "cannot be used"),
    ]:
        with pytest.raises(RequestError, match=words):
            RunFolder(path).preflight()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RequestError, match="does not exist"):
        RunFolder(Path("../no/parent")).preflight()
    assert not (tmp_path / "no").exists()
    RunFolder(Path("runs/a")).preflight()
    assert newest(Path("runs")) == Path("runs/a")
    assert newest(Path("none")) is None


def test_a_newer_or_foreign_request_is_told_and_hides_no_other(folder: RunFolder) -> None:
    request = folder.put_request({"methods": "toy"}, [make_cell(0)])
    whole = read_sealed(folder.path / "requests" / f"{request}.json")
    assert whole is not None
    for name, body in [
        ("newer", {**whole, "id": "newer", "schema": 99}),
        ("foreign", {"hello": "there"}),
        ("renamed", whole),
        ("odd", {**whole, "id": "odd", "cells": [{"method": 3}]}),
    ]:
        (folder.path / "requests" / f"{name}.json").write_bytes(seal(body))
    (folder.path / "requests" / "folder.json").mkdir()
    assert [cell.seed for cell in folder.expected()] == [0]
    told = folder.problems()
    assert len(told) == 5
    assert any("newer version. Upgrade" in line for line in told)


def test_predictions_that_changed_on_disk_are_never_read(folder: RunFolder) -> None:
    rows = [{"task": "toy/a", "row": n, "scores": [n / 3, -1.0], "text": "é" * n} for n in range(30)]
    folder.put_samples("ab", rows)
    path = folder.path / "samples" / "ab.parquet"
    whole = path.read_bytes()
    read = []
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        read.append(folder.samples("ab"))
    assert all(found is None or found == rows for found in read)
    assert read.count(None) > len(read) // 2
    path.write_bytes(whole)
    assert folder.samples("ab") == rows


def test_a_full_disk_says_what_is_needed_and_what_is_free(folder: RunFolder) -> None:
    code = "import resource, signal, sys; from pathlib import Path; from mtlbench.store import RunFolder\n"
    code += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    code += "RunFolder(Path(sys.argv[1])).put_request({'methods': 'toy' * 100}, [])"
    done = subprocess.run([sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "DiskError" in last and "needs " in last and " bytes are free" not in last
    assert re.search(r"needs \d{3} bytes and [\d,]+ are free\. The size of a single file is limited too", last), last
    assert [path.name for path in (folder.path / "requests").iterdir()] == []


def test_an_adapter_that_changed_is_not_given_out(folder: RunFolder) -> None:
    path = folder.adapter(make_cell().key)
    path.mkdir()
    (path / "adapter.safetensors").write_bytes(b"weights" * 100)
    publish(folder, make_record())
    record = folder.record(make_cell().key)
    assert record is not None and folder.checked_adapter(record) == path
    whole = (path / "adapter.safetensors").read_bytes()
    (path / "adapter.safetensors").write_bytes(whole[:-1] + b"t")
    with pytest.raises(StoreError, match="damaged or was replaced"):
        folder.checked_adapter(record)
    (path / "adapter.safetensors").write_bytes(whole)
    assert folder.checked_adapter(record) == path

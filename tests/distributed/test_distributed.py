"""A cell on two processes is the cell on one, and what happens to one of them happens to both."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks_job
import torch
from processes import pending, stopped
from ranks_job import EQUAL, STEPS, Training, tiny_seq2seq
from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.api.executor import DevicesPerCell, Launch
from mtlbench.api.record import Record
from mtlbench.distributed.collectives import join
from mtlbench.errors import RequestError
from mtlbench.executors.local import LocalExecutor
from mtlbench.files.stop_request import StopRequest
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.store import RunFolder
from mtlbench.workers import group

QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
CELL_STEPS = 6


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("ranks")
    command = group.command([str(out)], processes=2, port=group.free_port())
    command[command.index("mtlbench.workers.rank") - 1 : command.index("mtlbench.workers.rank") + 1] = [
        ranks_job.__file__
    ]
    done = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_close(one: dict[str, Any], other: dict[str, Any], *, tolerance: float) -> None:
    assert one["state"].keys() == other["state"].keys()
    for name, value in one["state"].items():
        torch.testing.assert_close(value, other["state"][name], rtol=tolerance, atol=tolerance)
    assert len(one["losses"]) == len(other["losses"])
    for left, right in zip(one["losses"], other["losses"], strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    # How rows are cut into passes differs, and with it the padding; the rest of what is counted does not.
    for name in ("steps", "rows", "real_tokens", "rows_per_task", "tokens_per_task", "stages", "micro_batches"):
        assert one["progress"][name] == other["progress"][name], name
    for name in ("losses", "stop_losses"):
        for left, right in zip(one["progress"][name], other["progress"][name], strict=True):
            assert left == pytest.approx(right, rel=tolerance, abs=tolerance)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert_close(one, other, tolerance=0)
    assert one["progress"] == other["progress"]


@pytest.mark.parametrize("words", EQUAL)
def test_two_processes_train_what_one_does(both: list[dict[str, Any]], words: str) -> None:
    assert_same(both[0][words], both[1][words])
    alone = Training(words, changes=EQUAL[words]).run().result()
    assert len(alone["losses"]) == STEPS
    assert_close(both[0][words], alone, tolerance=2e-4)


def test_encoder_decoders_too(both: list[dict[str, Any]]) -> None:
    assert_same(both[0]["t5"], both[1]["t5"])
    assert_close(both[0]["t5"], Training("lora[dropout=0]", build=tiny_seq2seq).run().result(), tolerance=2e-4)


def test_dropout_differs_between_processes_and_is_drawn_the_same_again(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert_same(found["drawn"], found["drawn again"])
    assert_same(both[0]["drawn"], both[1]["drawn"])
    alone = Training("lora[dropout=0.3]").run().result()
    assert not torch.allclose(alone["losses"][3], both[0]["drawn"]["losses"][3], rtol=1e-3)


def test_one_that_is_asked_to_end_ends_all_after_the_same_step_and_nothing_is_lost(both: list[dict[str, Any]]) -> None:
    for found in both:
        how, losses = found["stopped"]
        assert how == "stopped after 7"
        whole, rest = found["drawn"], found["resumed"]
        assert all(map(torch.equal, [*losses, *rest["losses"]], whole["losses"]))
        assert len(losses) == 7 and len(rest["losses"]) == STEPS - 7
        assert_same({**rest, "losses": []}, {**whole, "losses": []})


def test_memory_that_runs_out_on_one_process_halves_the_rows_on_all(both: list[dict[str, Any]]) -> None:
    undisturbed = Training("lora[dropout=0]", changes={"batch_size": 16}).run().result()
    for found in both:
        how, result = found["oom"]
        assert how == "ended"
        assert [step for step, _ in result["progress"]["micro_batches"]] != []
        result["progress"]["micro_batches"] = []
        assert_close(result, undisturbed, tolerance=2e-4)
    assert both[0]["oom"][1]["progress"] == both[1]["oom"][1]["progress"]


def test_what_one_process_fails_in_all_fail_in(both: list[dict[str, Any]]) -> None:
    assert [found["no room"].partition(":")[0] for found in both] == ["NoRoom", "NoRoom"]
    assert both[1]["broken"] == "ValueError: a bad row"
    assert both[0]["broken"] == "OtherFailed: Another process of this cell failed: ValueError: a bad row"
    assert all("RequestError" in found["worst"] and "--devices-per-cell 2,worst=1" in found["worst"] for found in both)


def test_fewer_processes_than_asked_for_are_refused() -> None:
    with pytest.raises(RequestError, match="2 processes were requested, but the group has 1"):
        join(processes=2, device="cpu", environ={"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})


# Workers


def request(path: Path, methods: str = "lora[dropout=0]") -> tuple[RunFolder, list[str], list[Cell]]:
    protocol = {"steps": CELL_STEPS, "batch_size": 8, "train_rows": 30, "eval_rows": 12}
    plan = make_plan(Request(methods=methods, tasks="glue/rte,glue/cola", protocol=protocol))
    folder = RunFolder(path)
    folder.preflight()
    words = ["--folder", str(path), "--request", folder.put_request(plan.request.to_json(), plan.cells)]
    return folder, [*words, "--device", "cpu", "--devices", "2", "--devices-per-cell", "2"], list(plan.cells)


def start(folder: RunFolder, words: list[str], **more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **QUIET, "MTLBENCH_CHECKPOINT_S": "0", **more}
    with folder.log(0).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mtlbench.workers.worker", *words, "--threads", "2"],
            env=environment,
            stdout=log,
            stderr=log,
        )


def finish(folder: RunFolder, words: list[str]) -> dict[str, Record]:
    assert start(folder, words).wait(timeout=300) == 0, folder.log(0).read_text()
    assert folder.claims() == {} and list((folder.path / "checkpoints").iterdir()) == []
    return folder.records()


def of_folder(path: Path) -> list[int]:
    """Living processes that were started for a run folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(path).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def serve(words: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, **given: Any) -> int:
    caplog.set_level(logging.WARNING)
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    return group.serve(words, processes=2, threads=1, pulse=None, stop=StopRequest(), **given)


def test_a_taken_port_costs_a_try_and_the_record_tells_of_two_processes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, words, (cell,) = request(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], group.free_port()])
        assert serve(words, caplog, monkeypatch, ports=lambda: next(ports)) == 0
    assert "is taken by another program (try 1 of 3)" in caplog.text
    record = folder.records()[cell.key]
    assert record.status == "ok" and record.provenance["processes"] == 2
    assert [line["step"] for line in folder.steps(cell.key) if "step" in line] == list(range(1, CELL_STEPS + 1))
    assert all(record.guards.values()) and record.costs is not None and record.costs.train_rows == 8 * CELL_STEPS
    assert of_folder(tmp_path) == []


def test_ports_that_stay_taken_end_after_three_tries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        tries = itertools.count()
        build: Callable[..., list[str]] = lambda words, **given: [sys.executable, "-c", f"exit({next(tries)} + 1)"]  # noqa: E731
        assert serve([], caplog, monkeypatch, ports=lambda: int(taken.getsockname()[1]), build=build) == 1
    assert next(tries) == 3
    assert "no free port was found in 3 tries" in caplog.text


def test_a_group_that_is_smaller_than_asked_for_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, words, _ = request(tmp_path)

    def build(words: list[str], *, processes: int, port: int) -> list[str]:
        return group.command(words, processes=processes - 1, port=port)

    assert serve(words, caplog, monkeypatch, build=build) == 1
    assert "2 processes were requested, but the group has 1: nothing is trained" in capfd.readouterr().err
    assert folder.records() == {} and folder.claims() == {}
    assert "try" not in caplog.text, "another port would change nothing"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder, words, _ = request(tmp_path_factory.mktemp("undisturbed"), METHODS)
    assert {record.status for record in finish(folder, words).values()} == {"ok"}
    return folder


METHODS = "lora[dropout=0.1],peml[layers=2,prefix_length=4]"


def assert_records_equal(folder: RunFolder, other: RunFolder) -> None:
    assert folder.records().keys() == other.records().keys()
    for key, record in folder.records().items():
        same = other.records()[key]
        for part in ("status", "scores", "guards", "notes"):
            assert getattr(record, part) == getattr(same, part), (record.cell.method, part)
        files = [f.adapter(key) / "adapter.safetensors" for f in (folder, other)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["rank.step:kill@4", "cell.step:kill@4"])
def test_a_killed_process_ends_the_group_and_the_next_worker_goes_on(
    tmp_path: Path, undisturbed: RunFolder, point: str
) -> None:
    folder, words, _ = request(tmp_path / "run", METHODS)
    marker = tmp_path / "killed"
    worker = start(folder, words, MTLBENCH_FAILPOINT=point, MTLBENCH_FAILPOINT_ONCE=str(marker))
    wait_for(marker.exists, seconds=120)
    assert worker.wait(timeout=30) == 1, "the whole group is gone 30 s after one of them"
    assert of_folder(folder.path) == [] and folder.records() == {}
    claims = [path.name for path in (folder.path / "claims").iterdir()]
    assert len(claims) == 1, "the attempt counts"
    records = finish(folder, words)
    assert_records_equal(folder, undisturbed)
    (resumed,) = [r for r in records.values() if "attempts" in r.provenance]
    assert resumed.provenance["attempts"] == 2 and resumed.provenance["resumed_from_step"][0] >= 3


@pytest.mark.slow
def test_a_process_that_hangs_ends_its_cell_as_timed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, (cell,) = request(tmp_path / "run")
    faults = {"MTLBENCH_FAILPOINT": "rank.step:stop@3", "MTLBENCH_FAILPOINT_ONCE": str(tmp_path / "once")}
    for name, value in {**QUIET, **faults}.items():
        monkeypatch.setenv(name, value)
    launch = Launch(
        folder=folder.path,
        request=folder.requests()[0]["id"],
        workers=1,
        device="cpu",
        devices=DevicesPerCell(usual=2),
        silence_s=40,
    )
    workers = LocalExecutor().start(launch)
    try:
        wait_for(lambda: not workers.alive(), seconds=200)
    finally:
        workers.stop(grace_s=0)
    record = folder.records()[cell.key]
    assert record.status == "failed" and record.failure is not None and record.failure.kind == "timeout"
    assert any("all_gather" in frame or "all_reduce" in frame for frame in record.failure.frames)
    assert folder.claims() == {}
    wait_for(lambda: of_folder(folder.path) == [])


@pytest.mark.slow
def test_a_group_that_is_asked_to_end_keeps_every_step(tmp_path: Path, undisturbed: RunFolder) -> None:
    folder, words, _ = request(tmp_path / "run", METHODS)
    # The first process stops in step 3, so that the signal comes there.
    worker = start(folder, words, MTLBENCH_CHECKPOINT_S="inf", MTLBENCH_FAILPOINT="cell.step:stop@3")
    wait_for(lambda: any(map(stopped, of_folder(folder.path))), seconds=120)
    worker.terminate()
    wait_for(lambda: any(pending(pid, signal.SIGINT) for pid in of_folder(folder.path) if stopped(pid)))
    for pid in of_folder(folder.path):
        os.kill(pid, signal.SIGCONT)
    assert worker.wait(timeout=60) == 128 + signal.SIGTERM, folder.log(0).read_text()
    assert of_folder(folder.path) == [] and folder.records() == {}
    assert list((folder.path / "claims").iterdir()) == [], "an attempt that was asked to end does not count"
    records = finish(folder, words)
    assert_records_equal(folder, undisturbed)
    assert sorted(r.provenance.get("resumed_from_step", []) for r in records.values()) == [[], [3]]

"""Real workers on the demo, killed or asked to end anywhere: the records are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import stopped
from waiting import wait_for

from mtlbench.api.cell import Cell
from mtlbench.api.hooks import hookimpl
from mtlbench.api.record import Record
from mtlbench.cells.bench import Bench
from mtlbench.cells.cell import run_cell
from mtlbench.files import failpoints
from mtlbench.observers.events import Events
from mtlbench.planning.plan import make_plan
from mtlbench.planning.request import Request
from mtlbench.store import RunFolder

STEPS = 6
METHODS = "lora_st,peml[layers=2,prefix_length=4],mtl_lora[dropout=0.1]"
PROTOCOL = {"steps": STEPS, "batch_size": 8, "train_rows": 30, "eval_rows": 12}
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def request(methods: str, path: Path) -> tuple[RunFolder, str, list[Cell]]:
    plan = make_plan(Request(methods=methods, tasks="glue/rte,glue/cola", protocol=PROTOCOL))
    folder = RunFolder(path)
    folder.preflight()
    return folder, folder.put_request(plan.request.to_json(), plan.cells), list(plan.cells)


def start(folder: RunFolder, request: str, **more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "mtlbench.workers.worker", "--folder", str(folder.path), "--request", request]
    environment = {**os.environ, **QUIET, "MTLBENCH_CHECKPOINT_S": "0", **more}
    with folder.log(0).open("ab") as log:
        return subprocess.Popen([*words, "--threads", "1", "--device", "cpu"], env=environment, stdout=log, stderr=log)


def finish(folder: RunFolder, request: str) -> dict[str, Record]:
    assert start(folder, request).wait(timeout=300) == 0, folder.log(0).read_text()
    assert list((folder.path / "checkpoints").iterdir()) == [], "they are there only while a cell is unfinished"
    return folder.records()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder, words, _ = request(METHODS, tmp_path_factory.mktemp("undisturbed"))
    records = finish(folder, words)
    assert {record.status for record in records.values()} == {"ok"} and len(records) == 3
    return folder


def assert_same(folder: RunFolder, other: RunFolder) -> None:
    """Everything but times and where it ran."""
    for key, record in folder.records().items():
        same = other.records()[key]
        for part in ("status", "scores", "guards", "notes"):
            assert getattr(record, part) == getattr(same, part), (record.cell.method, part)
        costs: list[Any] = [r.costs for r in (record, same)]
        for cost in ("steps", "train_rows", "train_tokens", "padded_tokens", "adapter_bytes", "trainable_parameters"):
            assert getattr(costs[0], cost) == getattr(costs[1], cost), (record.cell.method, cost)
        files = [f.adapter(key) / "adapter.safetensors" for f in (folder, other)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert folder.samples(key) == other.samples(key)
        logs = [[{**line, "seconds": 0} for line in f.steps(key)] for f in (folder, other)]
        assert logs[0] == logs[1]
        raw = [line for line in folder.steps_file(key).read_text().splitlines() if '"step"' in line]
        assert len(raw) == STEPS, "no step twice in the file either"
        seconds = [line["seconds"] for line in folder.steps(key) if "step" in line]
        assert seconds == sorted(seconds)


def test_workers_killed_in_training_and_while_writing_lose_nothing(tmp_path: Path, undisturbed: RunFolder) -> None:
    folder, words, _ = request(METHODS, tmp_path)
    for point in ("cell.step:kill@5", "checkpoint.after_tensors:kill@6"):
        killed = start(folder, words, MTLBENCH_FAILPOINT=point)
        assert killed.wait(timeout=300) == -signal.SIGKILL, folder.log(0).read_text()
    records = finish(folder, words)
    assert_same(folder, undisturbed)
    resumed = {r.cell.method: r.provenance.get("resumed_from_step", []) for r in records.values()}
    assert sum(map(len, resumed.values())) >= 2
    for record in records.values():
        assert record.provenance.get("attempts", 1) == len(resumed[record.cell.method]) + 1
        assert record.costs is not None and 0 < record.costs.train_seconds < record.costs.total_seconds
    assert "checkpoint_problems" not in str(records)


@pytest.mark.slow
def test_a_worker_asked_to_end_keeps_every_step(tmp_path: Path, undisturbed: RunFolder) -> None:
    folder, words, _ = request(METHODS, tmp_path)
    # asked from inside, at a step that is certain, and only in time for the last checkpoint
    asked = start(folder, words, MTLBENCH_FAILPOINT="cell.step:term@9", MTLBENCH_CHECKPOINT_S="inf")
    assert asked.wait(timeout=300) == 128 + signal.SIGTERM, folder.log(0).read_text()
    assert folder.claims() == {} and len(folder.records()) == 1
    assert len(list((folder.path / "checkpoints").iterdir())) == 1
    records = finish(folder, words)
    assert_same(folder, undisturbed)
    assert sorted(r.provenance.get("resumed_from_step", [0])[0] for r in records.values()) == [0, 0, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "code"), [("cell.evaluated:kill", -signal.SIGKILL), ("cell.saved:term", 143)])
def test_the_end_of_a_worker_in_evaluation_does_not_repeat_the_training(
    tmp_path: Path, undisturbed: RunFolder, fault: str, code: int
) -> None:
    folder, words, (cell,) = request("peml[layers=2,prefix_length=4]", tmp_path)
    assert start(folder, words, MTLBENCH_FAILPOINT=fault).wait(timeout=300) == code
    times = [line["seconds"] for line in folder.steps(cell.key) if "step" in line]
    assert len(times) == STEPS
    record = finish(folder, words)[cell.key]
    assert_same(folder, undisturbed)
    assert record.provenance["resumed_from_step"] == [STEPS]
    assert [line["seconds"] for line in folder.steps(cell.key) if "step" in line] == times


@pytest.fixture(scope="module")
def one_thread() -> Iterator[Bench]:
    threads = torch.get_num_threads()
    yield Bench(device="cpu", threads=1, data="demo")
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("fault", "kind"), [("oom", "oom"), ("full", "disk")])
def test_a_failure_in_evaluation_does_not_repeat_the_training(
    tmp_path: Path, undisturbed: RunFolder, one_thread: Bench, fault: str, kind: str
) -> None:
    folder, _, (cell,) = request("peml[layers=2,prefix_length=4]", tmp_path)
    steps: list[int] = []

    class Watch:
        @hookimpl
        def mtlbench_step_finished(self, step: int) -> None:
            steps.append(step)

    def run() -> Record:
        steps.clear()
        return run_cell(cell, bench=one_thread, folder=folder, events=Events({"watch": Watch()}))

    failpoints.arm(f"cell.evaluated:{fault}")
    try:
        failed = run()
    finally:
        failpoints.arm("")
    assert failed.failure is not None and failed.failure.kind == kind and len(steps) == STEPS
    record = Record.from_json(json.loads(json.dumps(run().to_json())))
    assert record.status == "ok" and steps == []
    want = undisturbed.records()[cell.key]
    assert (record.scores, record.notes, record.guards) == (want.scores, want.notes, want.guards)
    assert record.provenance["resumed_from_step"] == [STEPS] and record.provenance["attempts"] == 2
    assert record.costs is not None and failed.costs is None and record.costs.train_seconds > 0


def test_the_first_interrupt_of_a_run_drains_and_the_next_run_goes_on(tmp_path: Path) -> None:
    words = ["run", "--no-base", "--methods", METHODS, "--tasks", "glue/rte,glue/cola", "--workers", "1"]
    for name, value in PROTOCOL.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    environment = {**os.environ, **QUIET, "MTLBENCH_CHECKPOINT_S": "inf"}
    command = [sys.executable, "-m", "mtlbench", *words, "--out"]
    # By the same command, as workers of `mtlbench run` have other numbers of threads than those of the other tests here.
    subprocess.run(
        [*command, "undisturbed"], cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300
    )
    command.append("out")
    environment["MTLBENCH_FAILPOINT"] = "cell.step:stop@3"
    # A shell starts background jobs with SIGINT ignored, and what is ignored stays so.
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=hear
    )
    folder = RunFolder(tmp_path / "out")

    def frozen() -> int:
        return next((claim.owner.pid for claim in folder.claims().values() if stopped(claim.owner.pid)), 0)

    wait_for(frozen, seconds=300)
    worker = frozen()
    running.send_signal(signal.SIGINT)
    os.kill(worker, signal.SIGCONT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "Press Ctrl-C again to stop at once" in err and "same command again" in err
    assert folder.claims() == {} and folder.records() == {}
    (key,) = [path.name for path in (folder.path / "checkpoints").iterdir()]
    del environment["MTLBENCH_FAILPOINT"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert folder.records()[key].provenance["resumed_from_step"] == [3]
    assert_same(folder, RunFolder(tmp_path / "undisturbed"))


def test_an_evaluation_that_does_not_fit_goes_on_in_smaller_parts(
    tmp_path: Path, undisturbed: RunFolder, one_thread: Bench
) -> None:
    folder, _, (cell,) = request("mtl_lora[dropout=0.1]", tmp_path)
    largest = 200
    seen: list[int] = []

    def too_large(module: torch.nn.Module, args: Any, output: Any) -> None:
        if type(module).__name__ == "Embedding" and _in_evaluation():
            seen.append(args[0].numel())
            if args[0].numel() > largest:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = torch.nn.modules.module.register_module_forward_hook(too_large)
    try:
        record = run_cell(cell, bench=one_thread, folder=folder, events=Events({}))
    finally:
        handle.remove()
    assert record.status == "ok", record.failure
    assert max(seen) > largest and record.provenance["eval_tokens_per_batch"] < 1024
    assert record.costs is not None and record.costs.steps == STEPS
    want = undisturbed.records()[cell.key]
    assert {name: score.score for name, score in record.scores.items()} == {
        name: pytest.approx(score.score) for name, score in want.scores.items()
    }


def _in_evaluation() -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_scored":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False

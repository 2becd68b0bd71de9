"""The driver loses the state of the device inside a cell, as after an illegal memory access: real workers and cells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench import Tally
from store_builder import make_cell

from mtlbench.backbones.machine import is_out_of_memory, others_hold
from mtlbench.cells.failure import check_others, failure_of, lost, lost_unseen
from mtlbench.errors import DeviceBusy
from mtlbench.store import RunFolder

GIB = 2**30
RUN = (
    "run", "--no-base", "--methods", "lora", "--tasks", "glue/rte", "--seeds", "0,1", "--steps", "4", "--train-rows", "32",
    "--eval-rows", "16", "--batch-size", "8", "--workers", "1", "--device", "cpu",
)  # fmt: skip


@pytest.mark.fault("F31")
@pytest.mark.parametrize("again", [True, False], ids=["once", "each time"])
def test_its_cell_is_tried_once_more_and_then_fails_with_a_class_of_its_own(
    tmp_path: Path, tally: Tally, again: bool
) -> None:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "MTLBENCH_FAILPOINT": "cell.step:device@3",
        **({"MTLBENCH_FAILPOINT_ONCE": str(tmp_path / "fired")} if again else {}),
        "MTLBENCH_FOREIGN_BYTES": "5",
    }
    words = [sys.executable, "-m", "mtlbench", *RUN, "--out", "out"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False
    )
    tally.fault()
    folder = RunFolder(tmp_path / "out")
    records = list(folder.records().values())
    assert len(records) == 2 and folder.claims() == {} and list((folder.path / "claims").iterdir()) == []
    assert {record.provenance["foreign_device_bytes"] for record in records} == {5}
    log = "".join(path.read_text() for path in (folder.path / "logs").iterdir())
    if again:
        assert done.returncode == 0, done.stderr
        assert {record.status for record in records} == {"ok"}
        assert log.count("Its cell is tried once more, by another worker") == 1
        return
    assert done.returncode == 1, done.stderr
    for record in records:
        assert record.failure is not None and record.failure.kind == "device"
        assert "CUDA_LAUNCH" in record.failure.next_step
    assert len({record.provenance["pid"] for record in records}) == 2, "no worker goes on with a broken device"
    assert log.count("Its cell is tried once more, by another worker") == 2


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
        "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasLtMatmul(...)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "CUDA error: GPU is lost",
        "CUDA error: contained error",
        "CUDA error: initialization error",
        "No CUDA GPUs are available",
    ],
)
def test_errors_that_no_process_survives_are_known_also_inside_others(text: str) -> None:
    for error in (torch.AcceleratorError(text), RuntimeError(text)):
        assert lost(error) is error
        try:
            try:
                raise error
            except RuntimeError as inner:
                raise ValueError("the method could not go on") from inner
        except ValueError as outer:
            assert lost(outer) is error
    for harmless in (
        ValueError(text),
        RuntimeError("CUDA out of memory"),
        RuntimeError("CUDA error: invalid argument"),
    ):
        assert lost(harmless) is None


@pytest.mark.parametrize("library", ["CUDA error: CUBLAS_STATUS", "cuDNN error: CUDNN_STATUS"])
def test_a_handle_that_cannot_be_made_is_a_lack_of_memory(library: str) -> None:
    error = RuntimeError(f"{library}_NOT_INITIALIZED when calling `create(handle)`")
    assert is_out_of_memory(error) and lost(error) is None


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("CUDA error: no kernel image is available for execution on the device", "Install a build for the card"),
        ("The NVIDIA driver on your system is too old (found version 11040)", "Update the driver"),
        ("CUDA driver version is insufficient for CUDA runtime version", "Update the driver"),
    ],
)
def test_an_installation_that_cannot_use_the_card_is_told_with_the_fix(text: str, fix: str) -> None:
    failure = failure_of(RuntimeError(text), make_cell())
    assert failure.kind == "user" and fix.lower() in failure.message.lower() and torch.__version__ in failure.message


class FakeCuda:
    """The functions of ``torch.cuda`` that are asked after a failure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, free: int = 0, ours: int = 0, broken: str = "") -> None:
        self.broken = broken
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free * GIB, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: ours * GIB)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)

    def synchronize(self, device: object = None) -> None:
        if self.broken:
            raise torch.AcceleratorError(self.broken)


def test_whatever_waiting_for_the_device_raises_means_that_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, broken="CUDA error: something new in CUDA 14")
    unseen = lost_unseen(torch.device("cuda"))
    assert unseen is not None and lost(unseen) is None, "no list of words knows it"
    assert failure_of(unseen, make_cell(), kind="device").kind == "device"
    FakeCuda(monkeypatch)
    assert lost_unseen(torch.device("cuda")) is None and lost_unseen(torch.device("cpu")) is None


def test_memory_that_others_hold_is_the_fault_of_the_device_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error, device = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), torch.device("cuda")
    FakeCuda(monkeypatch, free=2, ours=10)
    assert others_hold(device) == 68 * GIB
    with pytest.raises(DeviceBusy, match="other programs hold 68.00 GiB of the device"):
        check_others(error, device, steps=0)
    check_others(error, device, steps=1)
    check_others(RuntimeError("something else"), device, steps=0)
    FakeCuda(monkeypatch, free=2, ours=77)
    assert others_hold(device) == 0, "what every process needs for its context"
    check_others(error, device, steps=0)
    check_others(error, torch.device("cpu"), steps=0)

"""The driver loses the state of the device inside a cell, as after an illegal memory access: real workers and cells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench import Tally

from mtlbench.cells.failure import lost
from mtlbench.store import RunFolder

RUN = (
    "run", "--no-base", "--methods", "lora", "--tasks", "glue/rte", "--seeds", "0,1", "--steps", "4", "--train-rows", "32",
    "--eval-rows", "16", "--batch-size", "8", "--workers", "1", "--device", "cpu",
)  # fmt: skip


@pytest.mark.fault("F31")
def test_its_cell_fails_with_a_class_of_its_own_and_the_others_run_in_a_fresh_process(
    tmp_path: Path, tally: Tally
) -> None:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "MTLBENCH_FAILPOINT": "cell.step:device@3",
        "MTLBENCH_FAILPOINT_ONCE": str(tmp_path / "fired"),
        "MTLBENCH_FOREIGN_BYTES": "5",
    }
    words = [sys.executable, "-m", "mtlbench", *RUN, "--out", "out"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False
    )
    tally.fault()
    assert done.returncode == 1, done.stderr
    folder = RunFolder(tmp_path / "out")
    records = sorted(folder.records().values(), key=lambda record: (record.status, record.cell.method))
    broken, *good = records
    assert broken.failure is not None and broken.failure.kind == "device" and "CUDA_LAUNCH" in broken.failure.next_step
    assert [record.status for record in good] == ["ok"] and folder.claims() == {}
    assert broken.provenance["pid"] not in {record.provenance["pid"] for record in good}
    assert {record.provenance["foreign_device_bytes"] for record in records} == {5}
    again = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False
    )
    assert again.returncode == 0, again.stderr
    repaired = folder.records()
    assert all(repaired[record.key] == record for record in good) and len(repaired) == 2


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
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

"""Measures one row in a separate process: ``python -m mtlbench.measuring.measure ROW.json RESULT.json``."""

from __future__ import annotations

import json
import logging
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from mtlbench.backbones.machine import choose_dtype, is_out_of_memory, probe
from mtlbench.errors import RequestError
from mtlbench.measuring.conditions import MachineWatch, hardware
from mtlbench.measuring.models import measured_backbone
from mtlbench.measuring.records import Measured, MeasuredTraining
from mtlbench.measuring.request import MeasureRow
from mtlbench.measuring.serving import measure_serving
from mtlbench.measuring.training import MeasuredMethod, measure_inference, measure_training
from mtlbench.planning.settings import build

PROBES = 5
_PACKAGES = ("mtlbench", "torch", "transformers", "peft")


def measure_row(row: MeasureRow) -> Measured:
    """The content of a row's file: ``status`` is ``ok``, ``refused`` with the reason, or ``oom``."""
    if row.threads:
        torch.set_num_threads(row.threads)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if row.device == "auto" else row.device
    device = torch.device(name)
    dtype = choose_dtype(row.dtype, probe(device))
    rate = _matrix_gflops(device, dtype)
    measured: Measured = {
        "row": row.to_json(),
        "status": "ok",
        "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "hardware": hardware(device),
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }
    backbone = measured_backbone(row.model, dtype=dtype, device=device)
    measured["backbone_parameters"] = backbone.parameters
    subject = MeasuredMethod(
        row=row,
        method=build(row.method, row.settings),
        backbone=backbone,
        device=device,
        autocast=None if dtype is torch.float32 else dtype,
    )
    watch = MachineWatch(device)
    try:
        _measure(subject, measured)
    except RequestError as error:
        measured["status"], measured["reason"] = "refused", str(error)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        measured["status"], measured["reason"] = "oom", str(error).splitlines()[0]
    # Probed before and after, as one of the two may have been disturbed.
    measured["matrix_gflops"] = round(max(rate, _matrix_gflops(device, dtype)), 1)
    training = measured.get("training")
    if training is not None and training["trains"]:
        training["share_of_matrix_rate"] = _share(training, measured["matrix_gflops"])
    measured["conditions"] = watch.conditions()
    return measured


def _matrix_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """The best of several probes, in the dtype of the computation."""
    probes = [probe(device) for _ in range(PROBES)]
    return max(m.float32_gflops if dtype is torch.float32 else m.bfloat16_gflops for m in probes)


def _share(training: MeasuredTraining, gflops: float) -> float:
    """FLOP/s of the median step, as a fraction of the device's matrix product rate."""
    return float(training["flops_counted"] / training["step_seconds"]["p50"] / (gflops * 1e9))


def _measure(subject: MeasuredMethod, measured: Measured) -> None:
    requested = subject.row.parts
    if "training" in requested or "inference" in requested:
        measured["training"], model = measure_training(subject)
        if "inference" in requested:
            measured["inference"] = measure_inference(subject, model)
    if "serving" in requested:
        measured["serving"] = measure_serving(subject)


def main(argv: list[str]) -> int:
    """Read a row, measure it, write the result."""
    logging.basicConfig(level=logging.WARNING)
    row = MeasureRow.from_json(json.loads(Path(argv[0]).read_text()))
    Path(argv[1]).write_text(json.dumps(measure_row(row)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The forecast of memory, time and disk, checked against what recorded cells needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtlbench.api.executor import DevicesPerCell
from mtlbench.api.record import Record
from mtlbench.backbones.names import BACKBONES
from mtlbench.cells.cost import folder_bytes
from mtlbench.errors import RequestError
from mtlbench.forecasting.forecast import Target, VariantForecast, check_fits, forecast_lines, forecasts
from mtlbench.store import RunFolder

WORDS = ["--methods", "lora,full", "--no-base", "--tasks", "glue/rte,glue/sst2", "--train-rows", "200", "--epochs", "1"]
TARGET = Target(device="cpu", memory=64 * 2**30, workers=1)


def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mtlbench", *words]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=300, check=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    home = tmp_path_factory.mktemp("outlook")
    done = call("run", *WORDS, "--evals-per-run", "0", "--workers", "1", "--out", "run", cwd=home)
    assert done.returncode == 0, done.stderr
    return RunFolder(home / "run")


def forecast(folder: RunFolder, *, known: bool) -> dict[str, tuple[VariantForecast, Record]]:
    records = {record.cell.variant: record for record in folder.records().values()}
    found, refused = forecasts(
        [record.cell for record in records.values()], folder.records() if known else {}, target=TARGET, data="demo"
    )
    assert not refused
    return {one.cell.variant: (one, records[one.cell.variant]) for one in found}


def test_tokens_steps_and_disk_are_those_of_the_recorded_cells(recorded: RunFolder) -> None:
    for one, record in forecast(recorded, known=True).values():
        costs = record.costs
        assert costs is not None
        assert one.counts.training == costs.trainable_parameters
        adapter = folder_bytes(recorded.adapter(record.key))
        beside = [recorded.path / "samples" / f"{record.key}.parquet", recorded.steps_file(record.key)]
        left = adapter + sum(path.stat().st_size for path in beside)
        assert left * 0.8 < one.disk < left * 1.5 + 100_000, (one.disk, left)


_ALONE = """
import json, sys
from pathlib import Path
from mtlbench.forecasting.forecast import Target, forecasts
from mtlbench.store import RunFolder
records = RunFolder(Path(sys.argv[1])).records().values()
found, _ = forecasts([r.cell for r in records], {}, target=Target(device="cpu", memory=64 * 2**30, workers=1), data="demo")
print(json.dumps({one.cell.variant: one.memory.total for one in found}))
"""
"""In a process of its own, as `mtlbench plan` does: a cell never seen is expected to need what the process has by now."""


def test_memory_of_cells_never_seen_is_within_a_third(recorded: RunFolder) -> None:
    command = [sys.executable, "-c", _ALONE, str(recorded.path)]
    totals = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for record in recorded.records().values():
        assert record.costs is not None and record.costs.peak_memory is not None
        assert totals[record.cell.variant] == pytest.approx(record.costs.peak_memory, rel=0.34), record.cell.variant


def test_memory_is_within_a_tenth_once_cells_are_recorded(recorded: RunFolder) -> None:
    for name, (one, record) in forecast(recorded, known=True).items():
        assert record.costs is not None and record.costs.peak_memory is not None
        assert one.memory.total == pytest.approx(record.costs.peak_memory, rel=0.1), name


def test_time_follows_recorded_cells_and_without_any_the_arithmetic(recorded: RunFolder) -> None:
    for name, (one, record) in forecast(recorded, known=True).items():
        assert record.costs is not None and one.throughput.records == 1
        assert one.seconds == pytest.approx(record.costs.total_seconds, rel=0.15), name
    unseen = {name: one for name, (one, _) in forecast(recorded, known=False).items()}
    lora, full = unseen["lora"], unseen["full"]
    assert lora.throughput.records == 0 and lora.seconds > 0
    assert (
        lora.seconds * lora.throughput.rate
        < full.seconds * full.throughput.rate
        < 1.6 * lora.seconds * lora.throughput.rate
    )


def test_what_cannot_fit_is_refused_and_what_must_be_halved_is_said(recorded: RunFolder) -> None:
    both = [one for one, _ in forecast(recorded, known=False).values()]
    need = both[0].smallest.total
    check_fits(both, target=TARGET, folder=recorded.path)
    tight = Target(device="cpu", memory=need - 1, workers=1)
    with pytest.raises(RequestError, match="with one row in a pass, but only"):
        check_fits(both, target=tight, folder=recorded.path)
    middle = Target(device="cpu", memory=(need + both[0].memory.total) // 2, workers=1)
    (line,) = [line for line in forecast_lines(both[:1], {}, target=middle, folder=recorded.path) if "halved" in line]
    assert "a pass of 32 rows will be halved" in line


def test_devices_of_a_cell_share_rows_and_with_shards_weights(recorded: RunFolder) -> None:
    cells = [record.cell for record in recorded.records().values() if record.cell.variant == "lora"]

    def expected(devices: DevicesPerCell) -> VariantForecast:
        target = Target(device="cpu", memory=2**30, workers=1, devices=devices)
        ((one,), _) = forecasts(cells, {}, target=target, data="demo")
        return one

    alone, shared, sharded = map(expected, [DevicesPerCell(), DevicesPerCell(2), DevicesPerCell(2, shard=True)])
    assert shared.memory.activations == alone.memory.activations / 2 == sharded.memory.activations
    assert shared.memory.weights == alone.memory.weights == pytest.approx(2 * sharded.memory.weights, abs=2)
    assert shared.memory.training == alone.memory.training == sharded.memory.training


def test_plan_says_it_all_and_creates_nothing(tmp_path: Path) -> None:
    done = call("plan", *WORDS, "--forecast", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lora: memory " in done.stdout and "full: memory " in done.stdout and "matrix rate" in done.stdout
    assert "2 cells: " in done.stdout and " free" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_model_that_no_memory_here_holds_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    shutil.copytree(BACKBONES / "demo", huge, ignore=shutil.ignore_patterns("*.safetensors"))
    (huge / "pytorch_model.bin").write_bytes(b"PK")  # what is in it is not looked into at the plan
    config = json.loads((huge / "config.json").read_text())
    layers = {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 4}
    (huge / "config.json").write_text(json.dumps(config | layers | {"head_dim": 128, "num_attention_heads": 512}))
    words = ["--methods", "lora", "--tasks", "glue/rte", "--model", str(huge), "--data", "demo", "--out", "out"]
    done = call("plan", *words, "--forecast", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "with one row in a pass, but only" in done.stderr
    assert not (tmp_path / "out").exists()

"""``benchmarks/gpu.py`` runs where there is no card, with toy shapes; what does not hold is in the sheet, and in its exit code."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def tables(sheet: Path) -> list[list[str]]:
    """The cells of every row of every table, without the heads."""
    lines = sheet.read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for at, line in enumerate(lines) if line.startswith("| ")]
    return [row for row in rows if row[0] not in ("method", "shape")]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def test_toy_shapes_on_the_processor_give_a_whole_sheet(gpu: Any, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.md"
    assert gpu.main(["--device", "cpu", "--toy", "--methods", "mtl_lora", "--out", str(sheet)]) == 0
    text = sheet.read_text()
    assert text.strip().endswith("Everything that was tried held.") and "toy shapes" in text
    checked, *rest = tables(sheet)
    assert checked[0] == "mtl_lora" and checked[4:7] == ["yes", "yes", "yes"]
    assert float(checked[1]) == 0.0, "the processor is compared with itself"
    assert rest[0][0] == "lora, scored as HFLM does" and rest[0][6] == "yes"
    lora = next(row for row in rest if row[:2] == ["toy", "lora"])
    assert int(lora[2].replace(",", "")) > 0 and float(lora[3].replace(",", "")) > 0 and float(lora[7]) > 0


def test_a_check_that_does_not_hold_and_a_step_that_fails_are_told(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = importlib.import_module("gpu_checks")
    sheet = gpu.Sheet(tmp_path / "sheet.md", seconds=60)
    monkeypatch.setattr(checks, "FLOAT32", -1.0)
    checks.check_methods(sheet, torch.device("cpu"), ["bitfit", "nosuch"])
    held, wrong = tables(sheet.path)
    assert held[0] == "bitfit" and held[6] == "NO"
    assert wrong[0] == "nosuch" and wrong[1].startswith("FAILED: RequestError: Unknown method 'nosuch'")
    assert "DID NOT HOLD: bitfit, nosuch." in list(gpu.closing(sheet, 1.0))


def test_when_the_time_is_up_what_is_done_is_kept_and_the_rest_is_named(gpu: Any, tmp_path: Path) -> None:
    sheet = gpu.Sheet(tmp_path / "sheet.md", seconds=5)
    sheet.table("T", "about", ("a", "b"))
    assert sheet.step("first", lambda: sheet.row(1, 2))
    assert not sheet.step("second", lambda: sheet.row(3, 4), expected=60)
    assert tables(sheet.path) == [["a", "b"], ["1", "2"]] and sheet.left_out == ["second"]
    assert "Left out, as the time was up: second." in list(gpu.closing(sheet, 5.0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_reason_and_the_way_out_are_one_line(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--out", str(tmp_path / "sheet.md")]) == 2 and not (tmp_path / "sheet.md").exists()
    told = capsys.readouterr().err
    assert len(told.strip().splitlines()) == 1 and "--device cpu --toy" in told

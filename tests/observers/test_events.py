"""Events reach every observer by itself; the step log stays short and whole."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from toy_worker import Numbers, toy_cell, toy_folder

from mtlbench.api.cell import Cell
from mtlbench.api.hooks import hookimpl
from mtlbench.api.record import Record
from mtlbench.observers.events import Events, StepLog


class Watcher:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    @hookimpl
    def mtlbench_run_started(self, cells: list[Cell]) -> None:
        self.told.append(f"run {len(cells)}")

    @hookimpl
    def mtlbench_cell_started(self, cell: Cell) -> None:
        self.told.append(f"cell {cell.seed}")

    @hookimpl
    def mtlbench_step_finished(self, cell: Cell, step: int, row_losses: Any, tasks: Any) -> None:
        self.told.append(f"step {step} {row_losses} {tasks}")

    @hookimpl
    def mtlbench_cell_finished(self, record: Record) -> None:
        self.told.append(f"done {record.status}")


class Raiser(Watcher):
    @hookimpl
    def mtlbench_cell_started(self, cell: Cell) -> None:
        super().mtlbench_cell_started(cell)
        raise RuntimeError("tracker is offline")


def tell_all(events: Events) -> None:
    cell = toy_cell(3)
    events.run_started([cell])
    events.cell_started(cell)
    events.training_planned(cell, 9)
    events.step_finished(cell, 1, Numbers([0.5]), Numbers([0]))  # type: ignore[arg-type]
    events.cell_started(cell)
    events.cell_finished(Record(cell=cell, status="ok"))
    events.run_finished()


EVERYTHING = ["run 1", "cell 3", "step 1 [0.5] [0]", "cell 3", "done ok"]


def test_an_observer_that_raises_is_named_once_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    before, bad, after = Watcher(), Raiser(), Watcher()
    tell_all(Events({"before": before, "bad": bad, "after": after}))
    assert before.told == after.told == EVERYTHING
    assert bad.told == ["run 1", "cell 3"]
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "'bad'" in warning.message and "mtlbench_cell_started" in warning.message
    assert "tracker is offline" in warning.message


def test_the_message_names_the_distribution(caplog: pytest.LogCaptureFixture) -> None:
    tell_all(Events({"progress": Raiser()}))
    assert "Observer 'progress' of mtlbench failed" in caplog.text


def test_an_interrupt_is_never_swallowed() -> None:
    class Interrupted:
        @hookimpl
        def mtlbench_cell_started(self, cell: Cell) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tell_all(Events({"interrupted": Interrupted()}))


def test_an_observer_that_fits_no_hook_is_dropped_at_once(caplog: pytest.LogCaptureFixture) -> None:
    class Misspelt:
        @hookimpl
        def mtlbench_cell_startd(self, cell: Cell) -> None: ...

    class WrongArgument:
        @hookimpl
        def mtlbench_cell_started(self, cells: Cell) -> None: ...

    good = Watcher()
    tell_all(Events({"misspelt": Misspelt(), "wrong": WrongArgument(), "good": good}))
    assert good.told == EVERYTHING
    assert len(caplog.records) == 2
    assert "'misspelt'" in caplog.text and "'wrong'" in caplog.text


def test_a_module_is_an_observer_too() -> None:
    module, told = ModuleType("plugin"), []

    @hookimpl
    def mtlbench_run_started(cells: list[Cell]) -> None:
        told.append(len(cells))

    module.mtlbench_run_started = mtlbench_run_started  # type: ignore[attr-defined]
    tell_all(Events({"module": module}))
    assert told == [1]


class Counted(Numbers):
    """A tensor that counts how often the device is waited for."""

    reads = 0

    def tolist(self) -> list[float]:
        type(self).reads += 1
        return super().tolist()


def steps_of(tmp_path: Path, steps: int, *, planned: bool) -> list[dict[str, Any]]:
    cell = toy_cell()
    folder, _ = toy_folder(tmp_path / "run", [cell])
    events = Events({"step log": StepLog(folder)})
    events.cell_started(cell)
    if planned:
        events.training_planned(cell, steps)
    Counted.reads = 0
    for step in range(1, steps + 1):
        events.step_finished(cell, step, Counted([1.0, 2.0, 6.0]), Numbers([0, 1, 1]))  # type: ignore[arg-type]
    events.cell_finished(Record(cell=cell, status="ok"))
    lines = [line for line in folder.steps(cell.key) if "step" in line]
    assert Counted.reads == len(lines), "losses are read only for lines that are written"
    return lines


def test_a_line_tells_step_loss_tasks_and_time(tmp_path: Path) -> None:
    first, *_, last = steps_of(tmp_path, 5, planned=True)
    seconds = first.pop("seconds")
    assert first == {"step": 1, "loss": 3.0, "tasks": {"toy/a": 1.0, "toy/b": 4.0}}
    assert last["step"] == 5 and last["seconds"] >= seconds >= 0


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("steps", [1, 150, 399, 20_000])
def test_the_step_log_stays_short_for_any_length(tmp_path: Path, steps: int, planned: bool) -> None:
    lines = steps_of(tmp_path, steps, planned=planned)
    assert min(steps, 80) <= len(lines) <= (202 if planned else 230)
    assert lines[0]["step"] == 1
    if planned:
        assert lines[-1]["step"] == steps
    gaps = [b["step"] - a["step"] for a, b in itertools.pairwise(lines)]
    assert max(gaps, default=0) <= max(1, steps / 20)


def test_an_attempt_after_a_torn_one_starts_afresh(tmp_path: Path) -> None:
    cell = toy_cell()
    folder, _ = toy_folder(tmp_path / "run", [cell])
    folder.steps_file(cell.key).write_bytes(b'{"started": "t"}\n{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    log = StepLog(folder)
    log.mtlbench_cell_started(cell)
    assert folder.steps(cell.key) == []
    text = folder.steps_file(cell.key).read_text()
    assert text.count("\n\n") == 0 and text.startswith('{"started": "t"}'), "no empty line, in an attempt after another"
    log.mtlbench_step_finished(cell, 1, Numbers([2.0]), Numbers([0]))  # type: ignore[arg-type]
    assert [line["loss"] for line in folder.steps(cell.key)] == [2.0]

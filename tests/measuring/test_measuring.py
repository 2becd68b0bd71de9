"""`mtlbench measure` without a device: words, files, the hardware rule, the table."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from mtlbench.errors import RequestError, StoreError
from mtlbench.executors.devices import Device
from mtlbench.measuring.records import check_hardware, read_measured, write_measured
from mtlbench.measuring.request import MeasureRow, make_rows, with_preset
from mtlbench.measuring.run import forecast
from mtlbench.measuring.table import table_lines

HARDWARE = {"kind": "cpu", "processor": "a", "cores": 2, "threads": 1}


def measured(word: str = "lora", *, disturbed: bool = False, **hardware) -> dict:
    (row,) = make_rows({"methods": word})
    return {
        "row": row.to_json(),
        "status": "ok",
        "measured": "2026-01-01T00:00:00+0000",
        "hardware": {**HARDWARE, **hardware},
        "versions": {"torch": "2"},
        "conditions": {"others_cores": 0.4, "disturbed": disturbed},
        "serving": [
            {"way": "unified", "tasks": 3, "one_by_one_seconds": 0.5, "switching_seconds": 0.0, "mixed_seconds": 0.2}
        ],
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"methods": "lra"}, "Did you mean 'lora'"),
        ({"methods": "lora", "model": "demoo"}, "Did you mean 'demo'"),
        ({"methods": "lora", "model": "random:llama-8b"}, "Did you mean 'llama-7b'"),
        ({"methods": "lora", "lengths": "8:4"}, "the shortest comes first"),
        ({"methods": "lora", "lengths": "x"}, "cannot be read"),
        ({"methods": "lora", "serving": "0,1"}, "between 1 and 1000"),
        ({"methods": "lora", "parts": "servin"}, "Did you mean 'serving'"),
        ({"methods": "lora", "steps": 1}, "steps must be at least 2"),
        ({}, "--methods is missing"),
    ],
)
def test_a_wrong_word_is_refused(words, message):
    with pytest.raises(RequestError, match=message):
        make_rows(words)


def test_a_row_is_names_and_numbers():
    one, other = make_rows({"methods": "lora[rank=4],preembedd+lora", "lengths": "32:64", "serving": "10,1"})
    assert (one.variant, other.variant) == ("lora[rank=4]", "preembedd+lora")
    assert (one.shortest, one.longest, one.serving) == (32, 64, (1, 10))
    assert MeasureRow.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert one.name != other.name and other.name.startswith("preembedd-lora-")


def test_the_papers_sweep_is_a_preset_that_options_scale_down():
    rows = make_rows(with_preset("peml/figure-4", {}))
    assert {row.model for row in rows} == {"random:llama-7b"} and {row.longest for row in rows} == {1024}
    assert {row.method for row in rows} == {"lora", "multilora", "peml"} and len(rows) == 15
    small = make_rows(with_preset("peml/figure-4", {"model": "demo", "lengths": "16"}))
    assert {(row.model, row.longest) for row in small} == {("demo", 16)}
    with pytest.raises(RequestError, match="mtlbench run --preset glue/quick"):
        with_preset("glue/quick", {})


def test_rows_of_different_hardware_are_refused_with_what_differs():
    check_hardware([measured(), measured("peml")])
    with pytest.raises(RequestError, match=r"processor \(a and b\); threads \(1 and 2\)"):
        check_hardware([measured(), measured("peml", processor="b", threads=2)])
    with pytest.raises(RequestError, match="different hardware"):
        list(table_lines([measured(), measured("peml", cores=4)]))


def test_files_are_read_back_and_a_damaged_one_is_named(tmp_path):
    write_measured(tmp_path, "one", measured())
    assert [row["row"]["method"] for row in read_measured(tmp_path)] == ["lora"]
    (tmp_path / "two.json").write_text("{")
    with pytest.raises(StoreError, match=r"two.json.*Measure it again"):
        read_measured(tmp_path)


def test_a_disturbed_row_is_marked_and_a_failed_one_said():
    failed = {**measured("peml"), "status": "oom", "reason": "out of\nmemory"}
    lines = list(table_lines([measured(disturbed=True), failed]))
    (row,) = [line for line in lines if line.lstrip().startswith("lora*")]
    assert row.split()[1:] == ["demo", "unified", "3", "0.5000", "0.0000", "0.2000", "-"]
    assert any("other processes used the machine meanwhile, up to 0.4 cores" in line for line in lines)
    assert lines[-1] == "peml: oom: out of memory"


def test_planning_a_measurement_loads_no_torch():
    code = (
        "import sys; from mtlbench.measuring import records, request, run, table\n"
        "request.make_rows({'methods': 'lora,peml', 'model': 'random:t5-large'}); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@dataclass(frozen=True)
class Room:
    """A machine whose accelerators have this much free memory."""

    free: tuple[int, ...] = ()

    def devices(self):
        return tuple(Device(id=str(at), memory=free, used=0) for at, free in enumerate(self.free))


def test_a_shape_that_fits_nowhere_is_refused_with_both_sizes():
    rows = make_rows(with_preset("peml/figure-4", {}))
    with pytest.raises(
        RequestError, match=r"llama-7b take 12.55 GiB in bfloat16, and the accelerator has 8.00 GiB free"
    ):
        list(forecast(rows, inventory=Room(free=(8 * 2**30,))))
    assert not list(forecast(rows, inventory=Room(free=(80 * 2**30,))))


def test_a_shape_on_a_processor_is_told_what_it_will_take():
    (told,) = forecast(make_rows({"methods": "lora,peml", "model": "random:t5-large"}), inventory=Room())
    assert "random:t5-large on a CPU: 1.37 GiB" in told and "2 rows" in told
    assert not list(forecast(make_rows({"methods": "lora"}), inventory=Room()))

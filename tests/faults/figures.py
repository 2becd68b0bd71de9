"""The figures of docs/reliability.md: every fault of the list, how often it was tried, results lost and double.

``python tests/faults/figures.py`` runs every test of the suite, the slow ones too, and those of other folders that try a
fault where it belongs, and writes the table. ``--faults F04,F37`` writes only those rows anew, ``--quick`` runs the
default selection and only prints it. The exit code is pytest's.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import blocks
import pytest

ROOT = Path(__file__).parents[2]

FAULTS = {
    "F01": "SIGKILL of a worker at each fail point",
    "F02": "SIGKILL of the parent with three jobs running",
    "F03": "SIGKILL of everything at once",
    "F04": "Ctrl-C once, then twice",
    "F05": "preemption: SIGTERM, checkpoint, requeue",
    "F06": "worker frozen longer than its lease, then woken",
    "F07": "segmentation fault in a plugin",
    "F08": "grandchild that ignores SIGTERM",
    "F09": "plugin that hangs, also with Python's lock held",
    "F10": "parent killed; clock jumps by an hour",
    "F11": "out of memory at a micro-batch above k",
    "F12": "out of memory at micro-batch 1",
    "F13": "worker killed by the kernel for memory",
    "F14": "out of memory in evaluation only",
    "F15": "full disk while claims, predictions, records and reports are written",
    "F16": "record, request and step log cut at every byte",
    "F17": "every bit of a record flipped; 500 bits in a run folder and of predictions",
    "F18": "empty, foreign, huge, newer file, directory, pipe or link in place of a record",
    "F19": "read-only or impossible folder; spaces, unicode, long paths",
    "F20": "records deleted and edited by hand",
    "F21": "claims of dead, foreign and re-used processes",
    "F22": "checkpoint cut or changed",
    "F23": "data set damaged, or changed under the same name",
    "F24": "two runs of the same cells",
    "F25": "two runs with cells in common",
    "F26": "64 processes publish at once",
    "F27": "reader in a loop meanwhile",
    "F28": "the same cells asked for in other words",
    "F29": "two results of one cell that disagree",
    "F30": "cells of 1, 2 and 4 devices on 4 devices",
    "F31": "device that disappears or breaks",
    "F32": "device whose memory a stranger holds",
    "F33": "port for rendezvous taken",
    "F34": "fewer processes than asked for",
    "F35": "one rank of a cell killed",
    "F36": "Slurm: preempted, timed out, node lost, cancelled, refused, forgotten",
    "F37": "Ray: node, driver or head killed",
    "F38": "bad requests",
    "F39": "plugins that raise, lie or clash",
    "F40": "cell, plugin version or library changed between runs",
    "F41": "search killed and started again",
    "F42": "no network, hub unreachable",
    "F43": "pickles, links, injected names",
    "F44": "tokens in environment, URLs and requests",
    "F45": "model that brings Python code",
}

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "F04": (
        "tests/executors/test_runner.py::test_an_interrupted_run_keeps",
        "tests/workers/test_interruption.py::test_the_first_interrupt",
    ),
    "F01": (
        "tests/workers/test_interruption.py::test_workers_killed",
        "tests/workers/test_interruption.py::test_the_end_of_a_worker",
    ),
    "F05": (
        "tests/workers/test_interruption.py::test_a_worker_asked",
        "tests/executors/test_slurm.py::test_a_preempted_job",
        "tests/training/test_resume.py::test_interrupted_training",
    ),
    "F07": ("tests/executors/test_watchdog.py::test_a_crash_inside",),
    "F08": (
        "tests/workers/test_worker.py::test_a_worker_ends_with_its_parent",
        "tests/executors/test_watchdog.py::test_what_a_cell_started",
    ),
    "F09": (
        "tests/executors/test_watchdog.py::test_a_silent_cell",
        "tests/executors/test_watchdog.py::test_a_cell_that_goes",
    ),
    "F10": (
        "tests/store/test_claims.py::test_a_clock_that_jumps",
        "tests/executors/test_runner.py::test_a_killed_parent_takes",
    ),
    "F11": (
        "tests/training/test_out_of_memory.py::test_too_many_rows",
        "tests/training/test_out_of_memory.py::test_it_is_the_same",
    ),
    "F12": ("tests/training/test_out_of_memory.py::test_no_room_for_one_row",),
    "F13": ("tests/executors/test_watchdog.py::test_a_killed_cell_is_tried",),
    "F14": (
        "tests/workers/test_interruption.py::test_a_failure_in_evaluation",
        "tests/workers/test_interruption.py::test_an_evaluation_that",
    ),
    "F21": (
        "tests/store/test_claims.py::test_a_claim_is_broken_only_when",
        "tests/store/test_claims.py::test_of_eight_racing",
        "tests/store/test_claims.py::test_a_number_that_was",
    ),
    "F22": (
        "tests/training/test_resume_files.py::test_a_damaged_checkpoint",
        "tests/training/test_resume_files.py::test_a_chain_needs",
    ),
    "F23": ("tests/data/test_source.py::test_a_changed_file", "tests/data/test_source.py::test_a_broken_file"),
    "F30": (
        "tests/executors/test_gpus.py::test_cells_of_one_two_and_four",
        "tests/executors/test_gpus.py::test_two_runs_never_share",
    ),
    "F31": (
        "tests/executors/test_gpus.py::test_a_device_on_which",
        "tests/executors/test_gpus.py::test_a_device_that_is_gone",
        "tests/executors/test_gpus.py::test_a_device_that_breaks",
        "tests/executors/test_gpus.py::test_a_cell_that_breaks",
        "tests/executors/test_gpus.py::test_the_last_device",
        "tests/executors/test_gpus.py::test_cells_that_no_device",
    ),
    "F32": ("tests/executors/test_gpus.py::test_memory_that_others",),
    "F36": ("tests/executors/test_slurm.py::test_",),
    "F37": ("tests/executors/test_ray.py::test_a_killed",),
    "F39": (
        "tests/test_plugins.py::test_two_packages",
        "tests/test_plugins.py::test_an_import_failure",
        "tests/test_plugins.py::test_a_plugin_that_is_not",
        "tests/test_plugins.py::test_an_observer_with",
        "tests/workers/test_worker.py::test_a_record_that_is_no_json",
        "tests/workers/test_worker.py::test_a_broken_observer",
    ),
    "F41": (
        "tests/executors/test_session.py::test_a_killed_session",
        "tests/tuning/test_tuning_cli.py::test_killed_with_sigkill",
        "tests/tuning/test_tuning.py::test_killed_before_any_cell",
        "tests/tuning/test_tuning.py::test_interrupted_or_without",
    ),
    "F42": (
        "tests/data/test_source.py::test_the_hub_names_what",
        "tests/data/test_source.py::test_a_data_set_cached",
    ),
    "F33": (
        "tests/distributed/test_distributed.py::test_a_taken_port",
        "tests/distributed/test_distributed.py::test_ports_that_stay_taken",
    ),
    "F34": (
        "tests/distributed/test_distributed.py::test_fewer_processes",
        "tests/distributed/test_distributed.py::test_a_group_that_is_smaller",
    ),
    "F35": (
        "tests/distributed/test_distributed.py::test_a_killed_process",
        "tests/distributed/test_distributed.py::test_a_process_that_hangs",
        "tests/distributed/test_distributed.py::test_a_group_that_is_asked",
    ),
}
"""Tests outside this folder: file, and the beginning of the test's name. Their results are checked inside them."""


_ROW = re.compile(
    r"^\| (?P<fault>F\d\d) \|.*\| (?P<tests>\d+)(, (?P<failed>\d+) failed)?(, (?P<skipped>\d+) skipped)?"
    r" \| (?P<tried>[\d,]+) \| (?P<lost>\S+) \| (?P<double>\S+) \|$",
    re.MULTILINE,
)


@dataclass
class Line:
    """What the tests of one fault came to."""

    tests: int = 0
    failed: int = 0
    skipped: int = 0
    tried: int = 0
    lost: int = 0
    double: int = 0
    counted: bool = False


class Collector:
    """A pytest plugin that adds up what the tests of each fault say."""

    def __init__(self, only: set[str]) -> None:
        self.lines: dict[str, Line] = defaultdict(Line)
        self.more: dict[str, str] = {}
        self._only = only
        self._faults: dict[str, tuple[str, ...]] = {}
        self._outcomes: dict[str, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the tests that try a fault."""
        for item in items:
            marks = item.get_closest_marker("fault")
            named = [f for f, tests in ELSEWHERE.items() if any(item.nodeid.startswith(t) for t in tests)]
            self._faults[item.nodeid] = tuple(
                fault for fault in (*(marks.args if marks else ()), *named) if not self._only or fault in self._only
            )
        items[:] = [item for item in items if self._faults[item.nodeid]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up one test when its last phase is over."""
        if report.failed:
            self._outcomes[report.nodeid] = "failed"
        elif report.skipped:
            self._outcomes.setdefault(report.nodeid, "skipped")
        if report.when == "teardown":
            outcome = self._outcomes.pop(report.nodeid, "passed")
            self._add(report, failed=outcome == "failed", skipped=outcome == "skipped")

    def _add(self, report: pytest.TestReport, *, failed: int = 0, skipped: int = 0) -> None:
        told = dict(report.user_properties)
        tally = told.pop("tally", None)
        self.more.update({str(name): str(value) for name, value in told.items()})
        for fault in self._faults.get(report.nodeid, ()):
            line = self.lines[fault]
            line.tests += 1
            line.failed += failed
            line.skipped += skipped
            if tally is None:
                line.tried += not skipped
                continue
            line.counted = True
            line.tried += tally[0]
            line.lost += tally[1]
            line.double += tally[2]


def table(lines: dict[str, Line]) -> str:
    """One row per fault; results of tests elsewhere are shown by a dash: they are checked there, not counted here."""
    rows = [
        "| fault | what is done | tests | times tried | results lost | results double |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for fault, what in FAULTS.items():
        line = lines.get(fault)
        if line is None or not line.tests:
            rows.append(f"| {fault} | {what} | none | – | – | – |")
            continue
        tests = str(line.tests)
        tests += f", {line.failed} failed" if line.failed else ""
        tests += f", {line.skipped} skipped" if line.skipped else ""
        results = (str(line.lost), str(line.double)) if line.counted else ("–", "–")
        rows.append(f"| {fault} | {what} | {tests} | {line.tried:,} | {results[0]} | {results[1]} |")
    found = lines.values()
    rows.append(
        f"| **all** | {sum(1 for line in found if line.tests)} of {len(FAULTS)} faults | "
        f"{sum(line.tests for line in found)} | {sum(line.tried for line in found):,} | "
        f"**{sum(line.lost for line in found)}** | **{sum(line.double for line in found)}** |"
    )
    return "\n".join(rows)


def known(text: str) -> dict[str, Line]:
    """The lines of a table that :func:`table` made."""
    found = {}
    for row in _ROW.finditer(text):
        lost, double = row["lost"], row["double"]
        found[row["fault"]] = Line(
            tests=int(row["tests"]),
            failed=int(row["failed"] or 0),
            skipped=int(row["skipped"] or 0),
            tried=int(row["tried"].replace(",", "")),
            lost=int(lost) if lost.isdigit() else 0,
            double=int(double) if double.isdigit() else 0,
            counted=lost.isdigit(),
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the default selection; prints the table only")
    parser.add_argument("--faults", metavar="IDS", default="", help="such as F04,F37: only these rows are written anew")
    given = parser.parse_args()
    os.chdir(ROOT)
    only = set(filter(None, given.faults.split(",")))
    files = sorted({test.partition("::")[0] for tests in ELSEWHERE.values() for test in tests})
    words = ["-q", "-p", "no:cacheprovider", "-m", "not slow" if given.quick else "slow or not slow"]
    collector, began = Collector(only), time.monotonic()
    code = pytest.main([*words, "tests/faults", *files], plugins=[collector])
    minutes = (time.monotonic() - began) / 60
    before = blocks.get("faults") if only else ""
    more = " ".join(f"{name}: {value}." for name, value in sorted(collector.more.items()))
    machine = f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores, {minutes:.0f} minutes. {more}"
    end = before.strip().splitlines()[-1] if before.strip() else machine
    told = "\n".join([table({**known(before), **collector.lines}), "", end.strip()])
    print(told)
    if not given.quick:
        blocks.put("faults", told)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())

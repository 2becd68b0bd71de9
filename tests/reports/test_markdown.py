"""The Markdown report: the whole document of a small study, and text that must not become markup."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from record_builder import COSTS, PROTOCOL, cell, done, failed, skipped

from mtlbench.plugins import load_report
from mtlbench.results.study import study_of

EXPECTED = Path(__file__).parent / "expected"


def report(records, **words) -> str:
    documents = load_report("markdown").render(study_of(records, **words))
    assert list(documents) == ["report.md"]
    return documents["report.md"]


def cells_of(line: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_a_small_study_reads_as_expected():
    frozen = replace(
        COSTS, trainable_parameters=0, train_seconds=0.0, tokens_per_second=0.0, total_seconds=4.5, adapter_bytes=0
    )
    large = replace(
        COSTS, peak_memory=3 * 2**30, trainable_parameters=150_000, train_seconds=7300.0, adapter_bytes=594 * 2**10
    )
    records = [done(cell("base", s), 50.0, 0.0, costs=frozen) for s in (0, 1, 2)]
    records += [done(cell("mtl_lora", s, settings={"rank": 8}), 71.0 + s, 31.5 - s) for s in (0, 1, 2)]
    records += [done(cell("peml", s), 74.0 + 2 * s, 29.0, costs=large) for s in (0, 2)]
    records += [failed(cell("peml", 1)), skipped(cell("other", 0))]
    text = report(records, expected=[cell("other", 1), *(record.cell for record in records)])
    assert text == (EXPECTED / "small.md").read_text()


def test_two_protocols_give_two_titled_tables():
    other = replace(PROTOCOL, steps=50, data="hub")
    text = report([done(cell(), 60.0, 20.0), done(cell(protocol=other, model="org/model"), 70.0, 20.0)])
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(titles) == 2 and text.startswith("# 2 tables: demo data, demo backbone\n")
    assert any("steps=50" in title and "demo data" not in title for title in titles)
    assert any("steps=none" in title and "demo data" in title for title in titles)


def test_names_and_messages_cannot_break_the_table_or_become_markup():
    odd = cell("a|b\nc", settings={"x": "<img src=x>"}, tasks=("s|t/one", "u/__two__"))
    text = report(
        [done(odd, 60.0, 20.0), failed(cell("bad", tasks=odd.tasks), message="`rm` [x](http://e) *now* | done")]
    )
    grids = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(cells_of(line)) for line in grids[:3]} == {4}
    assert cells_of(grids[0])[1:3] == [r"s\|t/one (acc)", r"u/\_\_two\_\_ (acc)"]
    assert cells_of(grids[2])[0] == r"a\|b c[x=\<img src=x>]"
    assert r"\`rm\` [x]\(http://e) \*now\* \| done" in text


def test_plain_names_stay_plain():
    text = report([done(cell("mtl_lora", settings={"rank": 8}), 60.0, 20.0)])
    assert "| mtl_lora[rank=8] |" in text


def test_every_line_of_a_grid_is_equally_wide_on_a_terminal():
    tasks = ("中文/任务一", "中文/任务二")
    text = report([done(cell(tasks=tasks), 60.0, 20.0), done(cell("base", tasks=tasks), 100.0, 2.0)])
    header, rule, first, second = [line for line in text.splitlines() if line.startswith("|")][:4]
    assert len(rule) == len(first) == len(second)
    assert len(header) == len(rule) - len("任务一任务二")


def test_tasks_of_several_suites_keep_their_full_names():
    text = report([done(cell(tasks=("glue/rte", "superglue/rte")), 60.0, 20.0)])
    header = next(line for line in text.splitlines() if line.startswith("|"))
    assert cells_of(header) == ["method", "glue/rte (acc)", "superglue/rte (acc)", "average"]


def test_a_study_without_scores_tells_why():
    text = report([failed(cell())])
    assert "average" not in text
    assert "- lora (0 of 1 seeds): seed 0 failed: oom: CUDA out of memory. Lower --micro-batch." in text


def test_an_empty_study_is_a_document_too():
    assert "0 records." in report([])


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.25, "4.2 s"), (61.0, "61.0 s"), (150.0, "2 min 30 s"), (7300.0, "2 h 01 min")]
)
def test_times_are_readable(seconds, words):
    assert f" {words} |" in report([done(cell(), 60.0, 20.0, costs=replace(COSTS, total_seconds=seconds))])

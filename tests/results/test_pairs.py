"""``mtlbench statistics`` and ``mtlbench seeds``: two rows of one table, on the command line as users type it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from record_builder import PROTOCOL, cell, done

from mtlbench.cli import cli
from mtlbench.errors import RequestError
from mtlbench.results.pairs import pair_of, seeds_lines
from mtlbench.store import RunFolder

TASKS = ("a/x", "a/y")


def stored(folder, records, *, right=None):
    """A run folder with these records; ``right`` gives the right answers of a cell's tasks by method and seed."""
    store = RunFolder(folder)
    store.preflight()
    store.put_request({}, [record.cell for record in records])
    for record in records:
        store.publish(record, store.claim(record.key))
        told = right and right[record.cell.method, record.cell.seed]
        if told:
            store.put_samples(record.key, [row for task, own in told.items() for row in samples(task, own)])
    return store


def samples(task, right):
    return [
        {
            "task": task, "doc_id": at, "doc_hash": f"{task}{at}", "gold": "yes", "prediction": "yes" if own else "no",
            "loglikelihoods": [-1.0, -2.0] if own else [-2.0, -1.0], "correct": bool(own),
            "metric_values": json.dumps({"acc": float(own)}),
        }
        for at, own in enumerate(right)
    ]  # fmt: skip


def records(method, *by_seed, **changes):
    return [done(cell(method, at, tasks=TASKS, **changes), *scores) for at, scores in enumerate(by_seed)]


def run(*words):
    return CliRunner().invoke(cli, list(map(str, words)))


def test_one_seed_is_compared_by_mcnemars_test(tmp_path):
    right = {
        ("lora", 0): {"a/x": [1] * 8 + [0] * 2, "a/y": [1, 0] * 5},
        ("peml", 0): {"a/x": [0] * 10, "a/y": [1, 0] * 5},
    }
    found = [*records("lora", (80.0, 50.0)), *records("peml", (0.0, 50.0))]
    stored(tmp_path / "run", found, right=right)
    lines = run("statistics", tmp_path / "run", "--method", "lora", "--against", "peml").output.splitlines()
    assert lines[0].startswith("lora minus peml, seed 0: a/x, a/y on demo")
    (line,) = [line for line in lines if line.startswith("a/x")]
    assert "+80.00" in line and "McNemar, exact; 8 of 10 differ" in line and line.endswith("0.008")
    (same,) = [line for line in lines if line.startswith("a/y")]
    assert "0 of 10 differ" in same and same.endswith("1.00")


def test_seeds_are_planned_for_a_task_in_the_words_of_the_documentation(tmp_path):
    stored(
        tmp_path / "run", [*records("lora", (60.0, 50.0), (61.0, 52.0)), *records("peml", (61.0, 50.0), (63.0, 51.0))]
    )
    words = ("--method", "peml", "--against", "lora", "--task", "a/x", "--points", "1.0")
    told = run("seeds", tmp_path / "run", *words)
    assert told.exit_code == 0
    assert "to detect 1.0 point on a/x you need 7 seeds" in told.output
    every = run("seeds", tmp_path / "run", *words[:4]).output.splitlines()
    assert len(every) == 4 and "the difference is the same for 2 seeds" in every[-1]


def test_rows_of_different_protocols_are_refused_with_what_differs():
    found = [*records("lora", (60.0, 50.0)), *records("peml", (61.0, 50.0), protocol=replace(PROTOCOL, steps=50))]
    with pytest.raises(RequestError, match=r"lora and peml cannot be compared: they differ in steps \(None and 50\)"):
        pair_of(found, method="lora", against="peml")
    other = [*records("lora", (60.0, 50.0)), *records("peml", (61.0, 50.0), model="org/model")]
    with pytest.raises(RequestError, match=r"backbone \(demo and org/model\)"):
        pair_of(other, method="lora", against="peml")


def test_a_choice_of_tables_is_left_to_the_user():
    changed = replace(PROTOCOL, steps=50)
    found = [
        r for m in ("lora", "peml") for r in (*records(m, (60.0, 50.0)), *records(m, (61.0, 50.0), protocol=changed))
    ]
    with pytest.raises(RequestError, match=r"2 tables have both lora and peml. Choose with --table: 1: .*; 2: "):
        pair_of(found, method="lora", against="peml")
    assert [pair_of(found, method="lora", against="peml", number=n).table.differs for n in (1, 2)] != [{}, {}]
    with pytest.raises(RequestError, match="no table 3"):
        pair_of(found, method="lora", against="peml", number=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"task": "a/z"}, "no task 'a/z'"),
        ({"wanted": 0.0}, "--points must be above 0"),
        ({"power": 1.0}, "--power must be above 0 and below 1"),
        ({"level": 0.9}, "must be above --alpha"),
    ],
)
def test_wrong_numbers_are_refused(words, message):
    pair = pair_of([*records("lora", (60.0, 50.0)) * 1, *records("peml", (61.0, 50.0))], method="lora", against="peml")
    with pytest.raises(RequestError, match=message):
        seeds_lines(pair, **{"task": None, "wanted": 1.0, "level": 0.05, "power": 0.8, **words})


def test_one_common_seed_has_no_spread():
    pair = pair_of([*records("lora", (60.0, 50.0)), *records("peml", (61.0, 50.0))], method="lora", against="peml")
    with pytest.raises(RequestError, match="share 1 seed: a spread needs two"):
        seeds_lines(pair, task=None, wanted=1.0, level=0.05, power=0.8)


def test_unknown_rows_are_told_with_the_nearest(tmp_path):
    with pytest.raises(RequestError, match=r"'lara'.*lora"):
        pair_of(records("lora", (60.0, 50.0)), method="lara", against="lora")
    with pytest.raises(RequestError, match="both 'lora'"):
        pair_of(records("lora", (60.0, 50.0)), method="lora", against="lora")


def test_a_report_takes_its_reference_and_resamples_from_the_command_line(tmp_path):
    right = {(m, s): {t: [1] * 6 + [s] * 4 for t in TASKS} for m in ("lora", "peml") for s in (0, 1)}
    scores = [(60.0, 60.0), (100.0, 100.0)]
    stored(tmp_path / "run", [*records("lora", *scores), *records("peml", *scores)], right=right)
    told = run("report", tmp_path / "run", "--reference", "peml", "--bootstrap", 40).output
    assert "Difference to peml in points" in told and "(40 resamples)" in told
    assert "(40 resamples)" not in run("report", tmp_path / "run", "--bootstrap", 0).output
    named = run("report", tmp_path / "run", "--title", "A first look", "--bootstrap", 0).output
    assert named.startswith("# A first look: demo data, demo backbone\n") and "\n## a/x, a/y on demo" in named
    wrong = run("report", tmp_path / "run", "--reference", "pemi")
    assert wrong.exit_code != 0 and isinstance(wrong.exception, RequestError)


def test_the_commands_load_no_torch(tmp_path):
    import subprocess
    import sys

    stored(
        tmp_path / "run", [*records("lora", (60.0, 50.0), (61.0, 52.0)), *records("peml", (61.0, 50.0), (63.0, 51.0))]
    )
    code = (
        "import sys; from mtlbench.cli import cli\n"
        f"for words in (['report'], ['statistics', '--method', 'lora', '--against', 'peml']):\n"
        f"    cli([words[0], {str(tmp_path / 'run')!r}, *words[1:]], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"

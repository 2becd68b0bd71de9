"""Records to tables: what is averaged, what may share a table, and what a table must admit."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
from record_builder import COSTS, PROTOCOL, accuracy, cell, correlation, done, failed, skipped

from mtlbench.api.record import Record
from mtlbench.api.row_checks import RowCheck, SplitCounts
from mtlbench.errors import StoreError
from mtlbench.results.columns import cost_columns
from mtlbench.results.study import study_of


def only_table(records, **words):
    (table,) = study_of(records, **words).tables
    return table


def row(table, label):
    (found,) = [row for row in table.rows if row.label == label]
    return found


def test_scores_are_means_and_sample_deviations_over_seeds():
    values = [(61.0, 20.0), (64.5, 26.0), (70.0, 11.5)]
    table = only_table([done(cell(seed=s), *v) for s, v in enumerate(values)])
    lora = row(table, "lora")
    rte = [v[0] for v in values]
    assert lora.seeds == (0, 1, 2)
    assert lora.entries["glue/rte"].scores.values == tuple(rte)
    assert lora.entries["glue/rte"].scores.mean == pytest.approx(statistics.fmean(rte))
    assert lora.entries["glue/rte"].scores.sd == pytest.approx(statistics.stdev(rte))
    averages = [statistics.fmean(v) for v in values]
    assert lora.average.scores.mean == pytest.approx(statistics.fmean(averages))
    assert lora.average.scores.sd == pytest.approx(statistics.stdev(averages))
    assert lora.outcome == "3 of 3 seeds"


def test_one_seed_has_no_spread_and_says_so():
    table = only_table([done(cell(), 60.0, 20.0), done(cell("base"), 50.0, 0.0)])
    assert row(table, "lora").average.scores.sd is None
    assert "One seed: no spread." in table.notes
    assert table.tests.startswith("One seed is no comparison of methods")
    assert only_table([done(cell(), 60.0, 20.0)]).tests == ""


def test_tables_do_not_depend_on_the_order_of_records():
    records = [done(cell(m, s), 50.0 + s, 10.0) for m in ("base", "lora", "peml") for s in (0, 1)]
    records.append(failed(cell("lora", 2)))
    studies = [study_of(some) for some in itertools.islice(itertools.permutations(records), 0, 5000, 97)]
    assert all(study == studies[0] for study in studies)


def test_rows_are_sorted_by_average_and_the_best_of_each_column_is_marked():
    scores = {"base": (50.0, 30.0), "lora": (70.0, 20.0), "peml": (65.0, 15.0)}
    table = only_table([done(cell(method, seed), *own) for method, own in scores.items() for seed in (0, 1)])
    assert [r.label for r in table.rows] == ["lora", "base", "peml"]
    best = {(r.label, task) for r in table.rows for task, entry in r.entries.items() if entry.best}
    assert best == {("lora", "glue/rte"), ("base", "glue/cola")}
    assert [r.label for r in table.rows if r.average.best] == ["lora"]


def test_nothing_is_best_in_a_table_of_one_row():
    assert not row(only_table([done(cell(), 60.0, 20.0)]), "lora").average.best


def test_a_score_that_is_no_number_is_never_best():
    records = [done(cell("lora", s), float("nan"), 20.0) for s in (0, 1)]
    records += [done(cell("base", s), 50.0, 10.0) for s in (0, 1)]
    table = only_table(records)
    assert [r.label for r in table.rows] == ["base", "lora"]
    assert not row(table, "lora").entries["glue/rte"].best
    assert row(table, "base").entries["glue/rte"].best


def test_different_protocols_never_share_a_table_and_titles_name_what_differs():
    other = replace(PROTOCOL, learning_rate=3e-4, steps=50)
    study = study_of([done(cell(), 60.0, 20.0), done(cell(protocol=other), 70.0, 20.0)])
    assert len(study.tables) == 2
    assert [set(t.differs) for t in study.tables] == [{"steps", "learning_rate"}] * 2
    (changed,) = [t for t in study.tables if t.protocol == other]
    assert "learning_rate=0.0003" in changed.title and "steps=50" in changed.title
    assert "batch_size" not in changed.title
    assert any("learning_rate" in note and "steps" in note for note in study.notes)


def test_different_models_and_tasks_never_share_a_table():
    records = [
        done(cell(), 60.0, 20.0),
        done(cell(model="org/model"), 60.0, 20.0),
        done(cell(tasks=("glue/rte",)), 60.0),
    ]
    study = study_of(records)
    assert len(study.tables) == 3
    assert all(not table.differs for table in study.tables)


def test_failed_skipped_and_missing_seeds_are_told_with_their_reason():
    records = [done(cell(seed=0), 60.0, 20.0), failed(cell(seed=1)), done(cell(seed=2), 62.0, 22.0)]
    records += [skipped(cell("peml", s)) for s in (0, 1)]
    study = study_of(records, expected=[cell("base", 0), *(r.cell for r in records)])
    (table,) = study.tables
    assert row(table, "lora").outcome == "2 of 3 seeds; seed 1 failed: oom: CUDA out of memory"
    assert row(table, "peml").outcome == "0 of 2 seeds; seeds 0, 1 skipped: refused: needs two tasks"
    assert row(table, "base").outcome == "0 of 1 seeds; seed 0 missing: no record yet"
    assert [r.label for r in table.rows] == ["lora", "base", "peml"]
    assert row(table, "peml").average is None and row(table, "peml").costs is None
    assert study.counts == {"ok": 2, "failed": 1, "skipped": 2, "missing": 1}


def test_rows_with_different_seeds_are_told():
    records = [done(cell(seed=s), 60.0, 20.0) for s in (0, 1)] + [done(cell("base"), 50.0, 0.0)]
    assert "The rows have different seeds: lora 0, 1; base 0." in only_table(records).notes


def test_package_versions_are_never_mixed_in_a_row():
    old, new = cell(seed=0), cell(seed=0, plugins={"mtlbench": "0.2.0"})
    table = only_table([done(old, 60.0, 20.0), done(new, 64.0, 24.0), done(cell("base"), 50.0, 0.0)])
    assert {r.label for r in table.rows} == {"lora (mtlbench 0.1.0)", "lora (mtlbench 0.2.0)", "base"}
    assert row(table, "lora (mtlbench 0.2.0)").average.scores.mean == 44.0
    assert any(note.startswith("The rows used different versions of mtlbench") for note in table.notes)


def test_variants_with_different_settings_have_rows_of_their_own():
    records = [done(cell(settings={"rank": rank}), 60.0, 20.0) for rank in (8, 16)]
    assert {r.label for r in only_table(records).rows} == {"lora[rank=8]", "lora[rank=16]"}


@pytest.mark.parametrize(
    ("data", "model", "words"),
    [
        ("demo:5f2c", "demo", ["demo data", "demo backbone"]),
        ("demo:5f2c", "org/model", ["demo data"]),
        ("folder:aa", "demo-t5", ["demo backbone"]),
        ("hub", "org/model", []),
    ],
)
def test_demo_data_and_demo_backbones_are_in_every_title(data, model, words):
    records = [done(cell(model=model, protocol=replace(PROTOCOL, data=data)), 60.0, 20.0)]
    for study in (study_of(records), study_of(records, title="My study")):
        told = [word for word in ("demo data", "demo backbone") if word in study.title]
        assert told == words
    assert [word for word in ("demo data", "demo backbone") if word in study.tables[0].title] == words


def test_nine_tasks_make_a_short_title():
    tasks = tuple(f"glue/t{i}" for i in range(9))
    table = only_table([done(cell(tasks=tasks), *[50.0] * 9)])
    assert table.title == "glue (9 tasks) on demo: demo data, demo backbone"


@pytest.mark.parametrize(
    ("score", "marked"),
    [
        (accuracy(50.0), True),
        (accuracy(50.1), False),
        (accuracy(7.0, majority=7.0), True),
        (accuracy(20.0, majority=None), False),
        (correlation(0.0), True),
        (correlation(5.0), False),
    ],
)
def test_scores_no_better_than_one_constant_answer_are_marked(score, marked):
    made = replace(done(cell(tasks=("x/y",)), 50.0), scores={"x/y": score})
    assert row(only_table([made]), "lora").entries["x/y"].at_majority is marked


def test_a_seed_without_a_score_for_a_task_is_in_no_average():
    whole, part = done(cell(seed=0), 60.0, 20.0), done(cell(seed=1), 90.0, 90.0)
    part = replace(part, scores={"glue/rte": part.scores["glue/rte"]})
    table = only_table([whole, part])
    assert row(table, "lora").average.scores.values == (40.0,)
    assert row(table, "lora").entries["glue/rte"].scores.n == 2
    assert "lora, seed 1: no score for glue/cola, so it is in no average." in table.notes


def test_what_was_trained_at_once_has_a_column_where_it_is_not_what_is_left():
    def names(*notes):
        rows = [done(cell(f"m{at}"), 70.0, 20.0, notes=note) for at, note in enumerate(notes)]
        (table,) = study_of(rows).tables
        return {c.name: [c.text(row) for row in table.rows] for c in cost_columns(table)}

    left = COSTS.trainable_parameters
    assert "trained at once" not in names({}, {"parameters_at_once": left, "parameters_attached": left + 1})
    found = names({}, {"parameters_at_once": 90_000}, {"parameters_attached": 80_000})
    assert found["trainable"] == ["25,000"] * 3
    assert found["trained at once"] == ["25,000", "90,000", "80,000"], "earlier versions noted what was attached"


def test_costs_are_spreads_over_the_seeds_that_gave_scores():
    records = [
        done(cell(seed=0), 60.0, 20.0),
        done(cell(seed=1), 60.0, 20.0, costs=replace(COSTS, peak_memory=2**30, train_seconds=63.0)),
        failed(cell(seed=2)),
    ]
    costs = row(only_table(records), "lora").costs
    assert costs.trainable_percent == 2.5
    assert costs.train_seconds.mean == 62.0
    assert max(costs.peak_memory.values) == 2**30
    assert costs.peak_memory_kind == "process"


def test_the_size_of_adapters_is_that_of_the_records_that_say_it():
    sizes = (2**20, 3 * 2**20, 0)
    of_seed = [replace(COSTS, adapter_bytes=size) for size in sizes]
    records = [done(cell(seed=s), 60.0, 20.0, costs=costs) for s, costs in enumerate(of_seed)]
    records += [done(cell("base"), 60.0, 20.0, costs=replace(COSTS, adapter_bytes=0))]
    table = only_table(records)
    costs = row(table, "lora").costs
    assert costs.adapter_bytes.values == (2**20, 3 * 2**20) and row(table, "base").costs.adapter_bytes is None
    (column,) = [column for column in cost_columns(table) if column.name == "adapter on disk"]
    assert [column.text(row(table, name)) for name in ("lora", "base")] == ["2.0 MiB", "–"]


def test_broken_checks_and_different_machines_are_told():
    records = [
        done(
            cell(),
            60.0,
            20.0,
            guards={"backbone unchanged": False, "trained": True},
            provenance={"device": "cpu", "backbone_fingerprint": "aa"},
        ),
        done(cell("base"), 50.0, 0.0, provenance={"device": "cuda", "backbone_fingerprint": "bb"}),
    ]
    notes = only_table(records).notes
    assert "lora, seed 0: a check did not hold: backbone unchanged." in notes
    assert "The device behind times and memory differs between cells: cpu, cuda." in notes
    assert "The fingerprint of the backbone's weights differs between cells: aa, bb." in notes


def test_two_different_records_of_one_cell_are_an_error_and_equal_ones_are_one():
    first, second = done(cell(), 60.0, 20.0), done(cell(), 61.0, 20.0)
    assert study_of([first, first]).counts["ok"] == 1
    with pytest.raises(StoreError, match=first.key):
        study_of([first, second])


def test_messages_become_one_printable_line():
    table = only_table([failed(cell(), message="first\nsecond \x1b[31mred" + "x" * 1000)])
    (problem,) = row(table, "lora").problems
    assert problem.message.startswith("first second [31mred") and problem.message.endswith("…")
    assert problem.message.isprintable() and len(problem.message) == 300


def test_no_records_make_an_empty_study():
    study = study_of([])
    assert study.tables == () and study.counts["ok"] == 0


def test_records_read_back_give_the_same_study():
    records = [done(cell(seed=s), 60.0 + s, 20.0) for s in (0, 1)] + [failed(cell(seed=2))]
    assert study_of(Record.from_json(r.to_json()) for r in records) == study_of(records)


def test_study_status_and_reports_load_nothing_heavy():
    code = (
        "import sys, mtlbench.results.study, mtlbench.results.status, mtlbench_reports.markdown, mtlbench_reports.csv;"
        "print(*sorted({'torch', 'transformers', 'pandas', 'pyarrow', 'numpy', 'scipy', 'lm_eval'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_truncated_and_repeated_rows_are_said_once_for_all_rows_of_a_table():
    check = RowCheck(train=SplitCounts(rows=40, cut=4, questions=4), evaluation=SplitCounts(rows=10), repeated=2)
    more = replace(check, train=SplitCounts(rows=40, cut=5, questions=4))
    for other, ending in ((check, "answers are whole."), (more, "Other cells have fewer.")):
        records = [
            done(cell(method, seed), 60.0, 20.0, notes={"row_checks": {"glue/rte": found.to_json()}})
            for method, seed, found in (("lora", 0, check), ("base", 0, other), ("lora", 1, check))
        ]
        notes = [note for note in only_table(records).notes if note.startswith("glue/rte: ")]
        assert len(notes) == 2 and notes[0].endswith(ending)
        assert notes[0].startswith(f"glue/rte: {other.train.cut} of 40 training rows")
        assert notes[1].startswith("glue/rte: 2 of 10 evaluation rows (20 %) are duplicates of training rows")


def test_a_score_that_rests_on_no_training_is_said():
    steps = replace(COSTS, steps=3)
    records = [
        done(cell("lora"), 60.0, 20.0, costs=steps, notes={"rows_per_task": {"glue/rte": 24}}),
        done(cell("dora"), 60.0, 20.0, costs=steps, notes={"rows_per_task": {"glue/rte": 12, "glue/cola": 12}}),
        done(cell("base"), 50.0, 10.0, notes={"rows_per_task": {}}),
        done(cell("full"), 50.0, 10.0, costs=steps),
    ]
    assert [note for note in only_table(records).notes if "trained on" in note] == [
        "lora, seed 0: no row of glue/cola was trained on: its score rests on the training of other tasks."
    ]

"""What the charts show: fronts, differences, sweeps, ranks, losses and searches, read from the values they carry."""

from __future__ import annotations

import random

import pytest
from drawn_studies import INSTALLED, OPERATIONS, TASKS, row, steps, trajectory
from record_builder import PROTOCOL, cell, done

from mtlbench.results.study import study_of
from mtlbench_reports.charts import Charts
from mtlbench_reports.charts.chart import Chart, OmittedChart
from mtlbench_reports.charts.differences import luminance
from mtlbench_reports.charts.drawings import drawings
from mtlbench_reports.charts.losses import windows
from mtlbench_reports.charts.scales import brief, plain
from mtlbench_reports.charts.sheet import folded, short, text_width, wrapped
from mtlbench_reports.charts.style import drawing
from mtlbench_reports.charts.swept import all_settings, cell_of, sweeps
from mtlbench_reports.charts.tradeoff import pareto
from mtlbench_reports.charts.trajectories import left, searches
from mtlbench_reports.html import Html


def charts(records, **words) -> dict[str, Chart | OmittedChart]:
    with drawing(), drawings(study_of(records, **words), lambda _, chart: chart, copies=1) as found:
        (drawn,) = found()
        return {chart.name: chart for chart in drawn.charts}


def table(records):
    (only,) = study_of(records).tables
    return only


def swept(records):
    rows = table(records).rows
    return {(s.method, s.setting): s for s in sweeps(rows, {row.label: all_settings(cell_of(row)) for row in rows})}


def test_the_pareto_front_is_every_point_that_no_other_beats():
    draw = random.Random(0)
    for _ in range(200):
        points = [(draw.randrange(8), draw.randrange(8)) for _ in range(draw.randrange(1, 12))]
        beaten = {(x, y) for x, y in points for a, b in points if (a <= x and b > y) or (a < x and b >= y)}
        assert pareto(points) == sorted(set(points) - beaten)


def test_points_carry_their_numbers_and_rows_without_scores_are_named():
    records = [
        *row("lora", 70.0, costs={"trainable_parameters": 163_840}),
        *row("base", 50.0, costs={"peak_memory": None}),
    ]
    found = charts(records, expected=[cell("peml", tasks=TASKS, plugins=INSTALLED)])
    assert "lora: average 70.5 ± 0.7 (2 seeds), 163,840 trainable parameters" in found["score-trainable"].hover.values()
    assert "Pareto front: lora alone, best and cheapest." in found["score-memory"].caption
    memory = found["score-memory"]
    assert list(memory.hover.values()) == ["lora: average 70.5 ± 0.7 (2 seeds), 512 MiB"]
    assert "without this cost: base" in memory.caption and "peml (1 missing)" in memory.caption


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"provenance": {"device": "B"}}, "the rows were measured on different devices (A, B)"),
        ({"costs": {"peak_memory_kind": "device"}}, "peak memory was measured in different ways (device, process)"),
    ],
)
def test_what_was_measured_differently_shares_no_chart(changes, reason):
    given = {"provenance": {"device": "A"}, **changes}
    found = charts([*row("lora", 70.0, provenance={"device": "A"}), *row("lora", 71.0, settings={"rank": 4}, **given)])
    assert found["score-memory"].reason == found["rank-cost"].reason == reason
    assert isinstance(found["score-trainable"], Chart)


def test_differences_are_means_over_the_seeds_that_both_rows_have():
    records = [done(cell("lora", s, ("a/x", "a/y")), 60.0 + 10 * s, 50.0) for s in (0, 1, 2)]
    records += [done(cell("peml", s, ("a/x", "a/y")), 62.0 + 10 * s, 50.0 - s) for s in (1, 2)]
    records += [done(cell("mtl_lora", 5, ("a/x", "a/y")), 99.0, 99.0)]
    chart = charts(records)["differences"]
    assert set(chart.hover.values()) == {
        "peml, a/x: +2.00 points to lora",
        "peml, a/y: −1.50 points to lora; at or below the majority class",
        "peml, average: +0.25 points to lora",
        *(f"mtl_lora, {name}: no score of a common seed" for name in ("a/x", "a/y", "average")),
    }


def test_differences_are_drawn_to_the_reference_of_the_study():
    study = study_of([*row("peml", 60.0), *row("lora", 61.0)], reference="peml")
    assert "chart-differences: Difference to peml" in Charts().render(study)["charts.txt"]
    assert "Difference to peml" in Html().render(study)["report.html"]
    assert "fewer than two rows" in charts(row("peml", 60.0))["differences"].reason


def test_ink_on_a_coloured_cell_is_chosen_by_luminance():
    assert luminance(1, 1, 1) == pytest.approx(1) and luminance(0, 0, 0) == 0
    assert luminance(0, 1, 0) > luminance(1, 0, 0) > luminance(0, 0, 1)


def test_a_sweep_joins_rows_that_differ_in_one_setting_and_knows_the_installed_default():
    records = [
        *row("lora", 70.0),
        *row("lora", 69.0, settings={"rank": 4}),
        *row("lora", 60.0, settings={"dropout": 0.5}),
    ]
    records += row("lora", 55.0, settings={"rank": 8, "dropout": 0.7})
    found = swept(records)
    assert set(found) == {("lora", "rank"), ("lora", "dropout")}
    assert found["lora", "rank"].values == [4, 16] and found["lora", "dropout"].values == [0.1, 0.5]
    assert [line.label for line in found["lora", "rank"].lines] == ["lora"]


def test_the_default_of_another_version_is_not_guessed():
    old = {"plugins": {"mtlbench": "0.0.1"}}
    records = [
        *row("lora", 70.0, **old),
        *row("lora", 69.0, settings={"rank": 4}, **old),
        *row("lora", 68.0, settings={"rank": 8}, **old),
    ]
    sweep = swept(records)["lora", "rank"]
    assert sweep.values == [4, 8] and sweep.unknown == ("lora",)
    assert "not known here: lora." in charts(records)["sensitivity"].caption
    gone = [*row("no_such_method", 70.0), *row("no_such_method", 60.0, settings={"k": 1})]
    assert not swept(gone)


def test_lines_of_a_sweep_share_all_other_settings_and_values_keep_their_order():
    sizes = [row("lora", 60.0 + r, settings={"rank": r, "target": t}) for r in (16, 2, 8) for t in ("all", "attention")]
    found = swept([record for records in sizes for record in records])
    assert [[value for value, _ in line.points] for line in found["lora", "rank"].lines] == [[2, 8, 16], [2, 8, 16]]
    assert [line.label for line in found["lora", "target"].lines] == ["lora[rank=16]", "lora[rank=2]", "lora[rank=8]"]
    assert found["lora", "rank"].numeric and not found["lora", "target"].numeric


def test_members_of_a_composition_and_learning_rates_are_swept_too():
    given = [*row("prefixnas+lora", 60.0), *row("prefixnas+lora", 61.0, settings={"lora.rank": 4})]
    assert swept(given)["prefixnas+lora", "lora.rank"].values == [4, 16]
    rates = [*row("lora", 60.0), *row("lora", 61.0, settings={"learning_rate": 0.01})]
    assert swept(rates)["lora", "learning_rate"].values == [PROTOCOL.learning_rate, 0.01]


def test_sensitivity_shows_means_with_numbers_and_words_on_their_axes():
    hover = charts([*row("lora", 70.0), *row("lora", 65.0, settings={"target": "attention"})])["sensitivity"].hover
    assert sorted(hover.values()) == [
        "lora: target all, average 70.5 ± 0.7 (2 seeds)",
        "lora[target=attention]: target attention, average 65.5 ± 0.7 (2 seeds)",
    ]


def test_the_total_rank_counts_every_module():
    made = [row("multilora", 70.0, settings={"rank": r}, costs={"tokens_per_second": 100.0 * r}) for r in (4, 8)]
    chart = charts([record for records in made for record in records])["rank-cost"]
    assert "multilora[rank=4]: total rank 12, 400 tokens/s" in chart.hover.values()
    assert "multilora[rank=8]: total rank 24, 512 MiB" in chart.hover.values()
    assert "no method has measured rows" in charts(row("lora", 70.0))["rank-cost"].reason


def test_losses_come_from_step_logs_and_notes_and_long_logs_are_averaged_in_windows():
    records = row("lora", 70.0, notes={"stop_losses": [[50, 0.9], [100, 0.7]]})
    hover = charts(records, steps=steps)["losses"].hover.values()
    assert "lora, validation split, mean over tasks: 0.7 at step 100" in hover
    assert {told.partition(":")[0] for told in hover} == {
        "lora, training, all tasks", "lora, validation split, mean over tasks", *(f"lora, {task}" for task in TASKS),
    }  # fmt: skip
    curve = [(float(x), float(x % 2)) for x in range(100)]
    assert windows(curve, most=50) == [(x + 0.5, 0.5) for x in range(0, 100, 2)]
    assert windows(curve, most=100) == curve
    noted = charts(records)["losses"].hover
    assert list(noted.values()) == ["lora, validation split, mean over tasks: 0.7 at step 100"]


def test_a_search_is_read_from_the_notes_and_its_weights_can_be_looked_up():
    (record,) = row("peml", 70.0, seeds=(3,), notes={"prefix_nas": trajectory(2)})
    (search,) = searches(record)
    assert search.operations == list(OPERATIONS) and left(search.cuts) == [(0, 4), (5, 2), (9, 1)]
    chart = charts([record])["search"]
    assert "seed 3: entropy 0.920 before step 5, 0.880 before step 9" in chart.hover.values()
    assert "layer 2, tanh-drop0.1: weight 0.4000" in chart.hover.values()
    assert sum(told.endswith(": found") for told in chart.hover.values()) == 2


def test_searches_by_task_are_drawn_together_and_many_variants_are_cut_to_the_best():
    notes = {"prefix_nas": {"by_task": {task: trajectory(1) for task in TASKS}}}
    assert [search.task for search in searches(row("peml", 70.0, notes=notes)[0])] == list(TASKS)
    assert "glue/rte 1, tanh-drop0.5: weight 0.3000" in charts(row("peml", 70.0, notes=notes))["search"].hover.values()
    many = [row("peml", 60.0 + n, settings={"layers": n}, notes=notes) for n in range(1, 6)]
    found = charts([record for records in many for record in records])
    drawn = [chart.title for name, chart in found.items() if name.startswith("search") and isinstance(chart, Chart)]
    assert drawn == [f"Architecture search of peml[layers={n}]" for n in (5, 4, 3)]
    assert found["search-5"].reason == "only the 3 variants with the best averages are drawn"


def test_not_a_number_is_no_point():
    records = [*row("lora", float("nan")), *row("mtl_lora", 60.0), *row("base", 50.0)]
    found = charts(records)
    assert all("nan" not in told for name in ("score-trainable", "differences") for told in found[name].hover.values())


def test_words_fit_their_room():
    for text in (
        "lora",
        "lora[rank=16,dropout=0.1,target=attention,alpha=32]",
        "x" * 200,
        "prefixnas+mtl_lora[rank=4]",
    ):
        assert text_width(short(text, width=1.5)) <= 1.5
        assert all(text_width(line) <= 2.1 for line in folded(text)) and len(folded(text)) <= 3
        assert len(wrapped(text * 9, width=2.0, size=7.5)) <= 3
    assert "".join(line.strip() for line in folded("prefixnas+mtl_lora[rank=16]+[order=in_turn]")) == (
        "prefixnas+mtl_lora[rank=16]+[order=in_turn]"
    )
    assert [brief(v) for v in (0, 0.05, 512, 1100, 163_840, 1.5e6, 2e9)] == [
        "0",
        "0.05",
        "512",
        "1,100",
        "163.8k",
        "1.5M",
        "2G",
    ]
    assert [plain(v) for v in (0.0001, 1e-6, 12.0, 163_840)] == ["0.0001", "1e-06", "12", "163,840"]

"""The search of ``mtlbench tune``, without training: what is asked, what is kept, what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tuning_builder import Killed, Runner, folder_at, near, searched, tuning

from mtlbench.api.cell import Cell
from mtlbench.tuning.pruning import promoted
from mtlbench.tuning.search import Outcome, search


def asked(outcome: Outcome) -> list[tuple[int, object]]:
    return [(trial.number, dict(trial.settings)) for trial in outcome.trials]


def test_trials_are_cells_scored_on_training_rows_and_no_cell_is_shared(tmp_path: Path):
    made = tuning(method="lora[rank=4]", trials=5, seed=3)
    outcome, runner = searched(made, tmp_path / "run")
    assert outcome.code == 0 and len(outcome.trials) == len(runner.ran) == 5
    for cell in runner.ran:
        assert cell.protocol.eval_from_train == 0.25 and cell.protocol.tuning == "trial"
        assert cell.settings["rank"] == 4 and 1e-4 <= float(cell.settings["learning_rate"] or 0) <= 1e-2
    assert len({cell.seed for cell in runner.ran}) == 5, "each trial has a seed of its own"
    assert outcome.best is not None
    assert outcome.best.score == max(trial.score or 0 for trial in outcome.trials)


@pytest.mark.parametrize("pruning", ["none", "halving"])
def test_killed_before_any_cell_it_goes_on_with_the_same_sequence(tmp_path: Path, pruning: str):
    made = tuning(trials=7, at_once=3, pruning=pruning)
    whole, straight = searched(made, tmp_path / "whole")
    for dies_at in range(len(straight.ran)):
        path = tmp_path / str(dies_at)
        with pytest.raises(Killed):
            searched(made, path, dies_at=dies_at)
        again, runner = searched(made, path)
        assert asked(again) == asked(whole) and again.best == whole.best
        assert len(runner.ran) == len(straight.ran) - dies_at, "what had a record is not run again"
        assert {c.key for c in folder_at(path).expected()} == {c.key for c in straight.ran}


def test_more_trials_continue_and_a_finished_search_runs_nothing(tmp_path: Path):
    first, _ = searched(tuning(trials=4), tmp_path / "run")
    more, runner = searched(tuning(trials=6), tmp_path / "run")
    assert asked(more)[:4] == asked(first) and len(runner.ran) == 2
    assert asked(more) == asked(searched(tuning(trials=6), tmp_path / "other")[0])
    again, runner = searched(tuning(trials=6), tmp_path / "run")
    assert again == more and runner.calls == []


def test_records_stay_trials_when_they_would_be_asked_differently_now(tmp_path: Path):
    one, _ = searched(tuning(trials=12, at_once=1), tmp_path / "run")
    six = tuning(trials=13, at_once=6)
    assert asked(one) != asked(searched(six, tmp_path / "other")[0])[:12], "the batch decides what TPE knows"
    more, runner = searched(six, tmp_path / "run")
    assert asked(more)[:12] == asked(one) and len(runner.ran) == 1


def test_other_seeds_and_other_spaces_are_other_searches(tmp_path: Path):
    searched(tuning(trials=3), tmp_path / "run")
    _, runner = searched(tuning(trials=3, seed=1), tmp_path / "run")
    assert len(runner.ran) == 3
    _, runner = searched(tuning(trials=3, searches=("rank=2:8",)), tmp_path / "run")
    assert len(runner.ran) == 3
    _, runner = searched(
        tuning(trials=3, searches=("learning_rate=0.5:0.9",)), tmp_path / "run", score=lambda cell: 1.0
    )
    assert len(runner.ran) == 3, "settings outside the space are no trials of it"


def test_tpe_finds_more_than_its_random_start(tmp_path: Path):
    outcome, _ = searched(tuning(trials=24, searches=("rank=1:64:log",)), tmp_path / "run", score=near(3e-3))
    startup, later = outcome.trials[:6], outcome.trials[12:]
    mean = [sum(trial.score or 0 for trial in trials) / len(trials) for trials in (startup, later)]
    assert mean[1] > mean[0] + 2


def test_a_failed_trial_counts_as_the_worst_and_is_tried_again_by_the_next_call(tmp_path: Path):
    made = tuning(trials=16)

    def too_high(cell: Cell) -> float | None:
        return None if float(cell.settings["learning_rate"] or 0) > 1e-3 else near(1e-3)(cell)

    outcome, runner = searched(made, tmp_path / "run", score=too_high)
    states = [trial.state for trial in outcome.trials]
    assert outcome.code == 0 and {"failed", "complete"} == set(states)
    assert states[8:].count("failed") <= states[:8].count("failed")
    assert outcome.best is not None and float(outcome.best.settings["learning_rate"] or 0) <= 1e-3
    repaired, runner = searched(made, tmp_path / "run")
    assert len(runner.ran) == states.count("failed"), "nothing else runs again"
    assert asked(repaired) == asked(outcome) and {trial.state for trial in repaired.trials} == {"complete"}


def test_when_everything_fails_it_stops_early(tmp_path: Path):
    outcome, runner = searched(tuning(trials=20, at_once=3), tmp_path / "run", score=lambda cell: None)
    assert outcome.code == 1 and outcome.best is None and len(runner.ran) == 6


def test_interrupted_or_without_workers_it_keeps_what_is_settled(tmp_path: Path):
    made = tuning(trials=6, at_once=3)
    folder = folder_at(tmp_path / "run")
    runner = Runner(folder, near(1e-3))
    told: list[int] = []
    for code, wanted in ((130, 130), (1, 1)):
        # One cell of the batch gets its record, then no worker is left.
        outcome = search(
            made, folder, lambda cells, code=code: runner(cells[:1]) or code, on_settled=lambda t: told.append(t.number)
        )
        assert outcome.code == wanted
    assert [trial.state for trial in outcome.trials] == ["complete", "complete", "running"]
    assert told == [0, 0, 1], "each call reports all settled trials"


def test_halving_gives_the_whole_budget_to_few(tmp_path: Path):
    made = tuning(trials=18, at_once=3, pruning="halving", protocol={"steps": 90})
    outcome, runner = searched(made, tmp_path / "run")
    steps = [cell.protocol.steps for cell in runner.ran]
    assert set(steps) == {10, 30, 90} and steps.count(10) == 18
    assert 18 > steps.count(30) > steps.count(90) >= 1
    complete = [trial for trial in outcome.trials if trial.state == "complete"]
    assert len(complete) == steps.count(90) and outcome.best in complete
    assert all(len(trial.scores) == 3 for trial in complete)


def test_shares_that_round_to_the_same_steps_run_once(tmp_path: Path):
    made = tuning(trials=2, pruning="median", protocol={"steps": 2})
    assert [protocol.steps for protocol in made.protocols] == [1, 2]
    assert [protocol.epochs for protocol in tuning(pruning="median").protocols] == [0.111111, 0.333333, 1.0]


def test_rules_of_pruning():
    assert promoted("none", 0.0, [99.0])
    assert promoted("median", 1.0, [2.0] * 4), "it waits for five"
    assert promoted("median", 2.0, [1.0, 2.0, 3.0, 2.0, 9.0]) and not promoted("median", 1.9, [1.0, 2.0, 3.0, 2.0, 9.0])
    assert promoted("halving", 1.0, []) and not promoted("halving", 1.0, [1.0]), "the first of equals"
    assert promoted("halving", 5.0, [1.0, 2.0, 9.0]) and not promoted("halving", 2.0, [1.0, 2.0, 9.0])

"""``mtlbench tune``: from checked words to trials, documents and the command that uses the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlbench.api.cell import Cell
from mtlbench.backbones.names import check_reachable
from mtlbench.executors.options import executor_of
from mtlbench.executors.runner import INTERRUPTED, Session
from mtlbench.observers.trackers import trackers_named
from mtlbench.planning.request import check_devices
from mtlbench.plugins import load_observer, offers
from mtlbench.store import RunFolder
from mtlbench.tuning.report import settings_words, trial_line, write_documents
from mtlbench.tuning.search import search
from mtlbench.tuning.trials import Trial, best_of
from mtlbench.tuning.tuning import Words, make_tuning


def tune(
    words: Words,
    *,
    out: Path | None,
    to_optuna: str | None,
    executor: str,
    workers: int,
    device: str,
    track: str | None = None,
    limits: Mapping[str, Any] | None = None,
    say: Callable[[str], None],
    tell: Callable[[str], None],
) -> int:
    """Search, write the documents and the export, and say what was found; gives the exit code.

    ``limits`` are the options of :class:`~mtlbench.executors.runner.Session` for devices and times, ``track`` names
    trackers.
    ``say`` gets the result, ``tell`` what happens on the way.

    Raises:
        RequestError: a word is wrong; nothing was made then.
    """
    tuning = make_tuning(words)
    limits = limits or {}
    if "devices" in limits:
        check_devices(limits["devices"], [tuning.template])
    starter = executor_of(executor)
    starter.check(device)
    observers: dict[str, object] = {name: load_observer(name) for name in offers("observers")}
    check_reachable(words.model)
    if to_optuna is not None:
        from mtlbench.tuning.storage import check_storage

        check_storage(to_optuna)
    folder = RunFolder(out or tuning.default_folder)
    observers |= trackers_named(track, folder.path)
    folder.preflight()
    effort = {"effort": tuning.effort, "seed": words.seed, "searches": list(words.searches)}

    settled: list[Trial] = []

    def heard(trial: Trial) -> None:
        settled.append(trial)
        tell(trial_line(trial, best_of(settled)))

    how = {**limits, "device": device, "workers": workers, "at_once": tuning.at_once}
    with Session(folder, starter, observers, **how) as session:

        def run(cells: Sequence[Cell]) -> int:
            request = folder.put_request({**tuning.plan.request.to_json(), "tuning": effort}, cells)
            return session.run(request, cells)

        outcome = search(tuning, folder, run, tell=heard)
    for path in write_documents(tuning, outcome, folder.path / "report"):
        tell(f"wrote {path}")
    if to_optuna is not None:
        from mtlbench.tuning.storage import export

        tell(f"wrote study {export(tuning, outcome.trials, to_optuna)!r} to {to_optuna}")
    if outcome.code == INTERRUPTED:
        tell(f"{len(settled)} of {tuning.trials} trials are settled. Run the same command again: it goes on from here.")
        return outcome.code
    best = outcome.best
    if best is None or best.score is None:
        tell("No trial is complete, so there are no best settings. The reasons are above and in the report.")
        return outcome.code
    say(f"best: {settings_words(best.settings)} (trial {best.number}, {best.score:.2f} on held-out training rows)")
    say(tuning.run_command(best.settings))
    return outcome.code

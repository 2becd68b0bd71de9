"""What commands do, as functions: plan, run, check, published tables. Errors are exceptions with the same sentences."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from mtlbench.commands.plan import plan as plan_command
from mtlbench.commands.plan import plan_request
from mtlbench.commands.run import run as run_command
from mtlbench.commands.run import run_request
from mtlbench.errors import RequestError
from mtlbench.interface.study import DRAWS, Study
from mtlbench.interface.words import options_of, with_words

if TYPE_CHECKING:
    import pandas as pd

_OF_A_TERMINAL = ("json", "parameters", "forecast")
"""Options of ``plan`` that are other ways to print."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RunPlan:
    """What a run would do. A notebook shows its cells."""

    folder: str
    """Where the run would go."""
    counts: Mapping[str, int]
    """Cells by ``ok``, ``failed``, ``skipped``, ``running`` and ``missing``; missing and failed ones would run."""
    notes: tuple[str, ...]
    """What should be known before."""
    tuning: tuple[str, ...]
    """What a search with ``tune`` adds, in sentences."""
    rows: tuple[Mapping[str, Any], ...]
    """One for each cell, as ``mtlbench plan --json`` prints them."""

    def cells(self) -> pd.DataFrame:
        """One row for each cell: key, method, seed, tasks and its state in the folder."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def __repr__(self) -> str:
        counts = ", ".join(f"{number} {status}" for status, number in self.counts.items() if number)
        return f"<RunPlan of {len(self.rows)} cells in {self.folder!r}: {counts}>"

    def _repr_html_(self) -> str:
        columns = ["variant", "seed", "status", "average", "key"]
        notes = "".join(f"<p>{escape(note)}</p>" for note in (*self.notes, *self.tuning))
        frame: Any = self.cells()[columns]
        return f"<p>{escape(repr(self)[1:-1])}</p>{notes}{frame.to_html(index=False)}"


@with_words(plan_command, without=_OF_A_TERMINAL)
def plan(**words: Any) -> RunPlan:
    """What :func:`run` would do with the same words; creates nothing and loads no torch.

    Raises:
        RequestError: the request cannot be carried out, with the sentence of the command line.
    """
    options = options_of(plan_command, words, without=_OF_A_TERMINAL)
    options.pop("device")
    planned = plan_request(options)
    content = planned.to_json()
    return RunPlan(
        folder=content["folder"],
        counts=content["counts"],
        notes=tuple(content["notes"]),
        tuning=tuple(content["tuning"]),
        rows=tuple(content["cells"]),
    )


@with_words(run_command)
def run(*, progress: bool = True, **words: Any) -> Study:
    """Train and evaluate as ``mtlbench run`` does; gives the study of the run folder.

    Workers are processes of their own: this process trains nothing, and what is finished is kept if it ends. The same
    call again runs only what is missing. Failed cells raise nothing: they are rows of the study, and a warning says so.

    Args:
        progress: Whether lines about progress are written to the standard error stream, which notebooks show.

    Raises:
        RequestError: the request cannot be carried out, with the sentence of the command line; nothing is created.
        KeyboardInterrupt: it was interrupted, after the workers have written checkpoints.
    """
    from mtlbench.executors.runner import FAILED, INTERRUPTED
    from mtlbench.results.documents import write_reports
    from mtlbench.store import RunFolder
    from mtlbench.store.several import read_results

    def tell(sentence: str) -> None:
        if progress:
            sys.stderr.write(f"{sentence}\n")
        else:
            warnings.warn(sentence, stacklevel=4)

    ran = run_request(options_of(run_command, words), tell=tell, without=() if progress else ("progress",))
    if ran.code == INTERRUPTED:
        raise KeyboardInterrupt("Run the same call again to resume.")
    results = read_results([RunFolder(ran.folder.path.resolve())])  # a notebook may change its directory
    study = Study.of(write_reports(results, ran.reports, draws=DRAWS, tell=lambda written: None), results)
    if ran.code == FAILED:
        left = ", ".join(f"{study.counts[name]} {name}" for name in ("failed", "missing") if study.counts[name])
        warnings.warn(f"Not all cells have scores: {left}. The reasons are in study.scores()['reason'].", stacklevel=2)
    return study


def check(names: str | Sequence[str], *, data: str | None = None) -> pd.DataFrame:
    """Whether methods and suites keep their promises: one row for each check, as ``mtlbench check`` prints them.

    Args:
        names: Methods, with settings in brackets, or suites.
        data: Rows of a suite: ``demo``, ``hub`` or a folder.

    Returns:
        Columns ``name``, ``on`` (backbone or task), ``check``, ``outcome`` (``ok``, ``failed`` or ``skipped``) and
        ``message``.

    Raises:
        RequestError: a name is unknown.
    """
    import pandas as pd

    from mtlbench.conformance.kit import method_findings, methods_named, suites_named, unexamined
    from mtlbench.conformance.suites import suite_findings

    text = names if isinstance(names, str) else ",".join(names)
    rows: list[tuple[str, str, str, str, str]] = []
    suites = suites_named(text)
    for suite in suites:
        rows += [
            (found.task.partition("/")[0], found.task, found.check, "ok" if found.ok else "failed", found.message)
            for found in suite_findings(suite, data=data or "demo", on_finding=lambda finding: None)
        ]
    if data is not None and not suites:
        raise RequestError(f"data is for suites, and {text!r} is none.")
    for name, method in ({} if suites else methods_named(text)).items():
        findings = method_findings(method, on_finding=lambda finding: None)
        rows += [(name, found.backbone, found.check, found.outcome, found.message) for found in findings]
        nothing = unexamined(method, findings)
        rows += [(name, "", "examined", "failed", nothing)] if nothing is not None else []
    return pd.DataFrame(rows, columns=["name", "on", "check", "outcome", "message"])


def published_tables(name: str | None = None) -> pd.DataFrame:
    """Values that papers printed, one row each, in percent.

    Args:
        name: A table such as ``peml/table-2``, a paper such as ``peml``, or all of them.

    Returns:
        Columns ``paper``, ``table``, ``row`` (as printed), ``method`` (ours, where there is one), ``backbone``,
        ``column`` (as printed), ``task`` (ours), ``metric``, ``value`` and ``copied_from``.

    Raises:
        RequestError: no ledger has that paper or table.
    """
    import pandas as pd

    from mtlbench.published.ledger import papers_named, tables_named

    if name is not None and "/" in name and not name.endswith(".json"):
        tables = tables_named(name)
    else:
        tables = tuple(table for paper in papers_named(name).values() for table in paper.tables)
    columns = ["paper", "table", "row", "method", "backbone", "column", "task", "metric", "value", "copied_from"]
    rows = []
    for table in tables:
        for row in table.rows:
            where = (table.paper, table.name, row.name, row.method, row.backbone)
            for column, value in zip(table.columns, row.values, strict=True):
                if value is not None:
                    percent = table.percent(value)
                    rows.append((*where, column.name, column.task, column.metric, percent, row.copied_from))
    return pd.DataFrame(rows, columns=columns)

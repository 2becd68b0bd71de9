"""The study of run folders, and the documents that reports make of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mtlbench.api.report import Report
from mtlbench.api.study import ForeignRow, Study
from mtlbench.errors import RequestError
from mtlbench.files.sealed import overwrite
from mtlbench.results.study import study_of
from mtlbench.store import RunFolder
from mtlbench.store.several import Results, read_results


@dataclass(frozen=True, kw_only=True)
class Written:
    """The documents of one report, as they were written."""

    paths: tuple[Path, ...]
    on_terminal: str | None
    """What the command line prints too."""


def study_in(
    of: RunFolder | Results,
    *,
    reference: str | None = None,
    draws: int,
    title: str = "",
    foreign: Sequence[ForeignRow] = (),
) -> Study:
    """The study of all records of a run folder, or of what was read of several, with predictions and step logs.

    ``reference``, ``draws`` and ``title`` are those of :func:`mtlbench.results.study.study_of`.
    """
    from mtlbench.statistics.answers import answers_in  # numpy

    results = read_results([of]) if isinstance(of, RunFolder) else of
    searches, unread = results.searches
    records = results.records.values()
    study = study_of(
        records,
        expected=results.expected,
        steps=results.steps,
        predictions=answers_in(results, records),
        reference=reference,
        draws=draws,
        title=title,
        notes=lambda: [*results.notes, *unread, *results.problems()],
        searches=searches,
    )
    return replace(study, foreign=tuple(foreign))


def write_reports(
    of: RunFolder | Results,
    reports: Sequence[Report],
    to: Path | None = None,
    *,
    reference: str | None = None,
    draws: int,
    title: str = "",
    calibration: bool = False,
    foreign: Sequence[ForeignRow] = (),
    tell: Callable[[Written], None],
) -> Study:
    """Compute the study of ``of`` once, write what each of ``reports`` renders of it, and hand it over.

    Args:
        of: A run folder, or what was read of several.
        to: Where documents go; ``report/`` in the first run folder by default.
        title: As of :func:`~mtlbench.results.study.study_of`.
        calibration: Whether every report has the table of calibration.
        foreign: Results of other programs, which reports show apart.
        tell: Is called after each report.

    Raises:
        RequestError: ``to`` is a symbolic link in the run folder, or no table has the reference.
    """
    folder = of if isinstance(of, RunFolder) else of.folders[0]
    target = to or folder.path / "report"
    if target.is_symlink() and target.parent == folder.path:
        raise RequestError(f"{str(target)!r} is a symbolic link. Say where documents go with --to.")
    with _without_gc():
        study = study_in(of, reference=reference, draws=draws, title=title, foreign=foreign)
        study = replace(study, shows_calibration=calibration)
        for report in reports:
            tell(_write(report, study, target))
    return study


def _write(report: Report, study: Study, target: Path) -> Written:
    documents: Mapping[str, str | bytes] = report.render(study)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in documents.items():
            overwrite(target / name, content if isinstance(content, bytes) else content.encode(), durable=False)
    except PermissionError as error:
        raise RequestError(
            f"The reports cannot be written to {str(target)!r}: {error.strerror or error}. Name a folder of your own "
            "with --to."
        ) from error
    first = next(iter(documents.values())) if report.on_terminal else None
    return Written(
        paths=tuple(target / name for name in documents),
        on_terminal=first.decode() if isinstance(first, bytes) else first,
    )


@contextmanager
def _without_gc() -> Iterator[None]:
    """Looking for cycles among thousands of records takes a tenth of the time, and frees 80 MB."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

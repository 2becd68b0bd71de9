"""The study of a run folder, and the documents that reports make of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mtlbench.api.report import Report
from mtlbench.api.study import Study
from mtlbench.errors import RequestError
from mtlbench.files.sealed import overwrite
from mtlbench.results.study import study_of
from mtlbench.store import RunFolder


@dataclass(frozen=True, kw_only=True)
class Written:
    """The documents of one report, as they were written."""

    paths: tuple[Path, ...]
    on_terminal: str | None
    """What the command line prints too."""


def study_in(folder: RunFolder, *, reference: str | None = None, draws: int, title: str = "") -> Study:
    """The study of all records of a run folder, with its stored predictions and step logs.

    ``reference``, ``draws`` and ``title`` are those of :func:`mtlbench.results.study.study_of`.
    """
    from mtlbench.statistics.answers import answers_in  # numpy

    records = folder.records()
    searches, unread = folder.searches()
    return study_of(
        records.values(),
        expected=folder.expected(),
        steps=folder.steps,
        predictions=answers_in(folder, records.values()),
        reference=reference,
        draws=draws,
        title=title,
        notes=lambda: [*unread, *folder.problems(records)],
        searches=searches,
    )


def write_reports(
    folder: RunFolder,
    reports: Sequence[Report],
    to: Path | None = None,
    *,
    reference: str | None = None,
    draws: int,
    title: str = "",
    calibration: bool = False,
    tell: Callable[[Written], None],
) -> Study:
    """Compute the study of a run folder once, write what each of ``reports`` renders of it, and hand it over.

    Args:
        to: Where documents go; ``report/`` in the run folder by default.
        title: As of :func:`~mtlbench.results.study.study_of`.
        calibration: Whether every report has the table of calibration.
        tell: Is called after each report.

    Raises:
        RequestError: ``to`` is a symbolic link in the run folder, or no table has the reference.
    """
    target = to or folder.path / "report"
    if target.is_symlink() and target.parent == folder.path:
        raise RequestError(f"{str(target)!r} is a symbolic link. Say where documents go with --to.")
    with _without_gc():
        study = study_in(folder, reference=reference, draws=draws, title=title)
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

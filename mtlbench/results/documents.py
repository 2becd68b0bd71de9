"""The study of run folders, and the documents that reports make of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtlbench.api.report import Report
from mtlbench.api.study import ForeignRow, Study
from mtlbench.errors import MtlbenchError, PluginError, RequestError
from mtlbench.files.sealed import overwrite
from mtlbench.files.temporary import DiskError
from mtlbench.plugins import offer_of, raised
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
        RequestError: ``to`` is a symbolic link in the run folder or cannot be written, or no table has the reference.
        PluginError: a report raised or returned no documents; those of the others are written.
    """
    folder = of if isinstance(of, RunFolder) else of.folders[0]
    target = to or folder.path / "report"
    if target.is_symlink() and target.parent == folder.path:
        raise RequestError(f"{str(target)!r} is a symbolic link. Say where documents go with --to.")
    with _without_gc():
        study = study_in(of, reference=reference, draws=draws, title=title, foreign=foreign)
        study = replace(study, shows_calibration=calibration)
        taken: dict[str, str] = {}
        broken: list[str] = []
        for report in reports:
            try:
                tell(_write(report, study, target, taken=taken))
            except PluginError as error:
                broken.append(str(error))
    if broken:
        raise PluginError(" ".join(broken))
    return study


def rendered(report: Report, study: Study) -> Mapping[str, str | bytes]:
    """The documents of a report, checked: at least one, under names below the folder they go to.

    Raises:
        PluginError: the report raises, or returns something else; the message names it and its package.
    """
    who = _who(report)
    try:
        documents: Any = report.render(study)
    except MtlbenchError as error:
        raise PluginError(f"{who}: {error}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"{who} failed in render: {raised(error)}. The other reports are not affected.") from error
    if not isinstance(documents, Mapping) or not documents:
        wrong = "no document" if documents == {} else repr(type(documents).__name__)
        raise PluginError(f"{who} returns {wrong}: render must return file names with text or bytes, at least one.")
    for name, content in documents.items():
        if not isinstance(name, str) or not is_inside(name):
            raise PluginError(
                f"{who} names a document {name!r}: a name must be a relative path below the folder of the documents, "
                "such as report.md or figures/one.png."
            )
        if not isinstance(content, str | bytes):
            raise PluginError(f"{who}: the document {name!r} is {type(content).__name__}, not text or bytes.")
    return documents


def is_inside(name: str) -> bool:
    """Whether a relative path stays below the folder it is relative to, on every system."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and ":" not in name and not {"", ".", ".."} & set(parts)


def _who(report: Report) -> str:
    try:
        return f"The report {report.name!r} of {offer_of('reports', report.name).origin}"
    except MtlbenchError:
        return f"The report {report.name!r}"


def _write(report: Report, study: Study, target: Path, *, taken: dict[str, str]) -> Written:
    documents = rendered(report, study)
    for name in documents:
        if (other := taken.get(name.lower())) is not None:
            raise PluginError(
                f"{_who(report)} would overwrite {name!r}, which the report {other!r} wrote: run one of them alone, or "
                "each with a --to of its own."
            )
    taken.update((name.lower(), report.name) for name in documents)
    try:
        for name, content in documents.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            overwrite(target / name, content if isinstance(content, bytes) else content.encode(), durable=False)
    except DiskError:
        raise
    except OSError as error:
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

"""``tables.tex`` for a paper, and ``report.tex``, a complete document with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from mtlbench import Report, hookimpl
from mtlbench.api.study import Entry, ForeignRow, Row, Study, Table
from mtlbench.results.analyses.calibration import LEGEND, calibrated_rows, calibration_columns
from mtlbench.results.analyses.probing import forgetting_columns, forgetting_legend, probed
from mtlbench.results.analyses.sweeps import SweptField, sweep_columns, sweep_legend, sweeps_in
from mtlbench.results.circumstances import equal_for_all_rows
from mtlbench.results.columns import (
    NumberColumn,
    cost_columns,
    difference_columns,
    difference_legend,
    over_tasks_columns,
    over_tasks_legend,
)
from mtlbench.results.formatting import (
    FOREIGN,
    FOREIGN_HEADER,
    NONE,
    counts,
    flags,
    foreign_cells,
    foreign_notes,
    legend,
    metrics_of,
    short_names,
    troubles,
)
from mtlbench.results.tuned import tuning_columns, tuning_legend
from mtlbench.text import sentences
from mtlbench_reports.latex_text import escaped

T = TypeVar("T")
_SCORES, _NUMBERS, _INTERVALS = 7, 11, 4
"""Maximum columns of scores, of other numbers, and of numbers with intervals that fit a page; a wider table continues
below."""
_LINES = 40
"""Maximum lines of a float that fit a page; a longer table continues in another float."""
_LABEL = 26
"""Length of a variant from which its column has a fixed width with line breaks."""
_DOCUMENT = r"""\documentclass{article}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{booktabs}
\extrafloats{500}
\begin{document}
\input{tables}
\end{document}
"""


class Latex(Report):
    r"""The tables of the study as floats; they only need ``\usepackage{booktabs}`` in the preamble."""

    name = "latex"

    def render(self, study: Study) -> Mapping[str, str]:
        sections = [f"% {escaped(line)}" for line in (study.title, counts(study.counts), *study.notes)]
        for number, sweep in enumerate(sweeps_in(study.tables), start=1):
            caption, label = escaped(sweep_legend(sweep)), f"sweep-{number}-{sweep.field.replace('_', '-')}"
            sections += _plain(sweep.rows, sweep_columns(sweep), caption, label, _without_notes(sweep), most=_INTERVALS)
        for number, table in enumerate(study.tables, start=1):
            prefix = f"{number}-" if len(study.tables) > 1 else ""
            sections += _sections(table, prefix=prefix, calibration=study.shows_calibration)
        sections += _foreign(study.foreign) if study.foreign else []
        if not study.tables:
            sections.append("There are no cells, so there is no table.")
        return {"tables.tex": "\n".join(sections) + "\n", "report.tex": _DOCUMENT}


@hookimpl
def mtlbench_reports() -> Iterable[Report]:
    return [Latex()]


def _foreign(rows: Sequence[ForeignRow]) -> Iterator[str]:
    """Results of other programs as floats of their own; programs and protocols are in the notes."""
    lines = [
        _line(f"{{}}{_folding(escaped(label))}", list(map(escaped, cells))) for label, _, *cells in foreign_cells(rows)
    ]
    head = _line(escaped(FOREIGN_HEADER[0]), list(map(escaped, FOREIGN_HEADER[2:])))
    for at, run in enumerate(_runs(lines, _LINES)):
        caption = escaped(FOREIGN) if at == 0 else "Table~\\ref{tab:foreign}, continued."
        body = "\n".join(["\\begin{tabular}{@{}p{4.2cm}llrr@{}}", "\\toprule", head, "\\midrule", *run])
        name = "tab:foreign" if at == 0 else f"tab:foreign-{at + 1}"
        yield (
            "\\begin{table}[tp]\n\\centering\\footnotesize\n"
            f"\\caption{{{caption}}}\\label{{{name}}}\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}"
        )
    named = [f"{row.program}: {note}" for row, note in zip(rows, foreign_notes(rows), strict=True)]
    yield "\n".join(["{\\footnotesize", *(f"\\noindent {escaped(note)}\\par" for note in named), "}"])


@dataclass(frozen=True, kw_only=True)
class _LatexColumn:
    """A column with its cells in LaTeX."""

    head: str
    under: str = ""
    """Second line of the header."""
    text: Callable[[Row], str]


def _sections(table: Table, *, prefix: str, calibration: bool) -> Iterator[str]:
    title = escaped(table.title)
    if any(row.seeds for row in table.rows):
        names = zip(table.tasks, short_names(table.tasks), strict=True)
        scores = [_score(name, task, metrics_of(table, task)) for task, name in names]
        caption = escaped(sentences(legend(table, tied="underlined:")))
        rows = list(table.rows)
        yield from _floats(
            rows, [*scores, _score("average", None, "")], f"{title}. {caption}", f"{prefix}scores", table, most=_SCORES
        )
        tuned, caption = [row for row in rows if row.tuned], escaped(tuning_legend(table))
        yield from _plain(tuned, tuning_columns(table), f"{title}. {caption}", f"{prefix}tuning", table)
        compared = [row for row in rows if row.comparison]
        caption = escaped(difference_legend(table))
        yield from _plain(compared, difference_columns(table), f"{title}. {caption}", f"{prefix}differences", table)
        over, ranked = over_tasks_columns(table), [row for row in rows if row.rank is not None]
        caption = escaped(sentences(f"Against {table.reference}" if table.reference else "", over_tasks_legend(over)))
        yield from _plain(ranked, over, f"{title}. {caption}", f"{prefix}tasks", table)
        caption = escaped(forgetting_legend(table))
        columns, caption = forgetting_columns(table), f"{title}. {caption}"
        yield from _plain(probed(table), columns, caption, f"{prefix}forgetting", table, most=_INTERVALS)
        if calibration:
            columns, caption = calibration_columns(table), f"{title}. {escaped(LEGEND)}"
            yield from _plain(calibrated_rows(table), columns, caption, f"{prefix}calibration", table, most=_SCORES)
        costly = [row for row in rows if row.costs]
        caption = "Costs: means over seeds; the peak memory is the highest."
        yield from _plain(costly, cost_columns(table), f"{title}. {caption}", f"{prefix}costs", table)
    else:
        yield rf"\paragraph{{{title}}} No cell has scores."
    yield _notes(table)


def _without_notes(sweep: SweptField) -> Table:
    """Its rows without the letters of their notes, which are below the tables of the sweep."""
    rows = tuple(replace(row, flags=(), problems=()) for row in sweep.rows)
    return replace(sweep.first, rows=rows)


def _plain(
    rows: Sequence[Row],
    columns: Sequence[NumberColumn],
    caption: str,
    label: str,
    table: Table,
    *,
    most: int = _NUMBERS,
) -> Iterator[str]:
    if columns and rows:
        latex_columns = [
            _LatexColumn(head=escaped(column.name), text=partial(_column_text, column)) for column in columns
        ]
        yield from _floats(rows, latex_columns, caption, label, table, most=most)


def _floats(
    rows: Sequence[Row], columns: Sequence[_LatexColumn], caption: str, label: str, table: Table, *, most: int
) -> Iterator[str]:
    """The table split into floats that each fit a page."""
    blocks = -(-len(columns) // most)
    wide = -(-len(columns) // blocks)
    pieces = [(block, run) for run in _runs(rows, _LINES) for block in _runs(columns, wide)]
    groups: list[list[str]] = []
    lines = 0
    for block, run in pieces:
        if not groups or lines + len(run) > _LINES:
            groups.append([])
            lines = 0
        groups[-1].append(_tabular(run, block, table))
        lines += len(run) + 4
    for at, group in enumerate(groups):
        caption_ = caption if at == 0 else f"Table~\\ref{{tab:{label}}}, continued."
        inner = "\n\n\\medskip\n".join(group)
        name = f"tab:{label}" if at == 0 else f"tab:{label}-{at + 1}"
        yield (
            "\\begin{table}[tp]\n\\centering\\footnotesize\\setlength{\\tabcolsep}{4pt}\n"
            f"\\caption{{{caption_}}}\\label{{{name}}}\n{inner}\n\\end{{table}}"
        )


def _runs(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


def _column_text(column: NumberColumn, row: Row) -> str:
    return escaped(column.text(row))


def _tabular(rows: Sequence[Row], columns: Sequence[_LatexColumn], table: Table) -> str:
    long = any(len(row.label) >= _LABEL for row in table.rows)
    first = "p{4.2cm}" if long else "l"
    lines = [f"\\begin{{tabular}}{{@{{}}{first}{'r' * len(columns)}@{{}}}}", "\\toprule"]
    lines.append(_line("method", [column.head for column in columns]))
    if any(column.under for column in columns):
        lines.append(_line("", [f"\\scriptsize {column.under}" if column.under else "" for column in columns]))
    lines.append("\\midrule")
    letters = _letters(table)
    for row in rows:
        label = _folding(escaped(row.label)) if long else escaped(row.label)
        letter = f"$^{{\\mathrm{{{letters[row.label]}}}}}$" if row.label in letters else ""
        lines.append(_line(f"{{}}{label}{letter}", [column.text(row) for column in columns]))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _folding(label: str) -> str:
    return "\\raggedright " + label.replace(",", ",\\hspace{0pt}").replace("+", "+\\hspace{0pt}")


def _line(label: str, cells: Sequence[str]) -> str:
    """A line of a table; ``label`` begins with braces so that a bracket in it is not an option of the previous line."""
    return " & ".join([label, *cells]) + r" \\"


def _score(name: str, task: str | None, metrics: str) -> _LatexColumn:
    def text(row: Row) -> str:
        entry = row.average if task is None else row.entries.get(task)
        return _entry(entry) if entry else escaped(NONE)

    return _LatexColumn(head=escaped(name), under=escaped(metrics), text=text)


def _entry(entry: Entry) -> str:
    mean = escaped(f"{entry.scores.mean:.1f}".replace("-", "−"))
    marked = f"\\textbf{{{mean}}}" if entry.best else f"\\underline{{{mean}}}" if entry.tied else mean
    sd = "" if entry.scores.sd is None else f"{{\\scriptsize$\\pm${entry.scores.sd:.1f}}}"
    return marked + sd + ("$^\\dagger$" if entry.at_majority else "")


def _letters(table: Table) -> dict[str, str]:
    """Row label to the letter of its note: rows with failed, skipped, missing or degenerate cells."""
    labels = [row.label for row in table.rows if row.problems or row.flags]
    return {label: _letter(at) for at, label in enumerate(labels)}


def _letter(at: int) -> str:
    return chr(ord("a") + at) if at < 26 else _letter(at // 26 - 1) + _letter(at % 26)


def _notes(table: Table) -> str:
    """The notes below the floats, as plain text because they may be longer than a page."""
    letters = _letters(table)
    lines = [f"{equal_for_all_rows(table)}", *table.notes]
    paragraphs = [escaped(line) for line in lines]
    for row in table.rows:
        problems = [*(f"{line}." for line in flags(row)), *troubles(row)]
        paragraphs += [f"$^{{\\mathrm{{{letters[row.label]}}}}}${escaped(f'{row.label}: {line}')}" for line in problems]
    return "\n".join(["{\\footnotesize", *(f"\\noindent {line}\\par" for line in paragraphs), "}"])

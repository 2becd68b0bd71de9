"""``report.md``: GitHub-flavoured tables that also read well as plain text in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from unicodedata import combining, east_asian_width

from mtlbench import Report, hookimpl
from mtlbench.tables import AT_MAJORITY, Entry, Row, RowCosts, Study, Table, seed_words, sentences

_MARK = "†"
_NONE = "–"


class Markdown(Report):
    """One document; each table of the study becomes scores, costs and what went wrong."""

    name = "markdown"
    on_terminal = True

    def render(self, study: Study) -> Mapping[str, str]:
        parts = [f"# {_escape(study.title)}", _counts(study.counts), _bullets(study.notes)]
        alone = len(study.tables) == 1 and study.tables[0].title == study.title
        for table in study.tables:
            parts.extend([] if alone else [f"## {_escape(table.title)}"])
            parts.extend(_sections(table))
        return {"report.md": "\n\n".join(filter(None, parts)) + "\n"}


@hookimpl
def mtlbench_reports() -> Iterable[Report]:
    return [Markdown()]


def _sections(table: Table) -> Iterator[str]:
    if any(row.seeds for row in table.rows):
        suites = {task.partition("/")[0] for task in table.tasks}
        short = len(suites) == 1 and len(table.tasks) > 1
        names = [task.partition("/")[2] or task if short else task for task in table.tasks]
        rows = [[_escape(row.label), *_scores(row, table.tasks)] for row in table.rows]
        yield _grid(["method", *map(_escape, names), "average"], rows)
        yield _legend(table)
        costs = [[_escape(row.label), *_costs(row.costs)] for row in table.rows if row.costs]
        if costs:
            yield "Costs, means over seeds (peak memory: the highest):"
            yield _grid(["method", *_cost_names(table.rows)], costs)
    yield _bullets(table.notes)
    troubles = [line for row in table.rows for line in _trouble(row)]
    if troubles:
        yield "Failed, skipped and missing cells:"
        yield _bullets(troubles)
    yield _equal(table)


def _scores(row: Row, tasks: Sequence[str]) -> Iterator[str]:
    for entry in (*(row.entries.get(task) for task in tasks), row.average):
        yield _entry(entry) if entry else _NONE


def _entry(entry: Entry) -> str:
    spread = entry.scores
    text = f"{spread.mean:.1f}" if spread.sd is None else f"{spread.mean:.1f} ± {spread.sd:.1f}"
    return (f"**{text}**" if entry.best else text) + (_MARK if entry.at_majority else "")


def _legend(table: Table) -> str:
    entries = [entry for row in table.rows for entry in (*row.entries.values(), row.average) if entry]
    words = ["Scores in percent"]
    if any(entry.scores.sd is not None for entry in entries):
        words.append("mean ± standard deviation over seeds")
    if any(entry.best for entry in entries):
        words.append("best mean in bold")
    if any(entry.at_majority for entry in entries):
        words.append(f"{_MARK} {AT_MAJORITY}")
    return "; ".join(words) + "."


def _cost_names(rows: Iterable[Row]) -> list[str]:
    kinds = sorted({row.costs.peak_memory_kind for row in rows if row.costs and row.costs.peak_memory_kind})
    memory = f"peak memory ({' and '.join(kinds)})" if kinds else "peak memory"
    return ["trainable", "of backbone", "added at inference", memory, "tokens/s", "training", "total"]


def _costs(costs: RowCosts | None) -> Iterator[str]:
    if costs is None:
        return
    yield f"{costs.trainable_parameters.mean:,.0f}"
    yield f"{costs.trainable_percent:.2f}%"
    yield f"{costs.inference_parameters.mean:,.0f}"
    yield _memory(max(costs.peak_memory.values)) if costs.peak_memory else _NONE
    yield f"{costs.tokens_per_second.mean:,.0f}" if costs.tokens_per_second.mean else _NONE
    yield _time(costs.train_seconds.mean) if costs.train_seconds.mean else _NONE
    yield _time(costs.total_seconds.mean)


def _memory(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def _trouble(row: Row) -> Iterator[str]:
    for problem in row.problems:
        yield f"{row.label} ({len(row.seeds)} of {row.planned} seeds): {sentences(str(problem), problem.next_step)}"


def _equal(table: Table) -> str:
    p = table.protocol
    budget = f"{p.steps} steps" if p.steps is not None else f"{p.epochs:g} epochs"
    rows = [
        f"at most {n} {kind} rows a task" for n, kind in ((p.train_rows, "training"), (p.eval_rows, "evaluation")) if n
    ]
    seeds = {row.seeds for row in table.rows if row.seeds}
    words = [
        f"data {p.data}",
        f"prompts {p.prompts or 'of an unknown version'}",
        f"rows of at most {p.max_length} tokens",
        *rows,
        f"scored on {p.eval_from_train:.0%} of the training rows" if p.eval_from_train else "",
        f"tuning effort {p.tuning}" if p.tuning != "none" else "",
        f"{budget} of batch {p.batch_size}",
        f"{p.mixing} mixing",
        f"learning rate {p.learning_rate:g} ({p.schedule}) where a method sets none",
        f"early stopping ({p.evals_per_run} scores a run, patience {p.patience})"
        if p.evals_per_run
        else "no early stopping",
        seed_words(*seeds) if len(seeds) == 1 else "",
        f"protocol {p.hash()}",
    ]
    return f"Equal for all rows: {_escape('; '.join(filter(None, words)))}."


def _counts(counts: Mapping[str, int]) -> str:
    records = sum(n for status, n in counts.items() if status != "missing")
    told = ", ".join(f"{counts[status]} {status}" for status in ("ok", "failed", "skipped") if counts[status])
    missing = f"{_number(counts['missing'], 'cell')} without a record." if counts["missing"] else ""
    return " ".join(filter(None, [f"{_number(records, 'record')}{': ' + told if told else ''}.", missing]))


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _escape(text: str) -> str:
    """Text from plugins and users as one line of Markdown without markup; ``mtl_lora[rank=8]`` stays as it is."""
    line = " ".join(text.split())
    line = re.sub(r"[\\|<*`~$&]", r"\\\g<0>", line).replace("](", r"]\(")
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", line)


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with padded cells: the first column to the left, numbers to the right."""
    widths = [max(map(_width, column)) for column in zip(header, *rows, strict=True)]
    widths = [max(width, 3) for width in widths]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(_padded(row, widths)) + " |" for row in (header, rule, *rows))


def _padded(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
        space = " " * (width - _width(cell))
        yield space + cell if at else cell + space


def _width(text: str) -> int:
    """Columns of a terminal."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)

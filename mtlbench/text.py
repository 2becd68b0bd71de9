"""Formatting of plain text: lines, sentences, aligned tables, quantities, lists of seeds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import PurePath


def one_line(text: str, *, limit: int = 300) -> str:
    """Untrusted text as one line without terminal controls, truncated with an ellipsis after ``limit`` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def local_name(model: str) -> str:
    """A model as others may see it: of a local folder only its name, anything else as it is."""
    return PurePath(model).name if PurePath(model).is_absolute() else model


_QUOTED = re.compile(r"""(?P<quote>['"`])(?P<path>/[^'"`\n]*)(?P=quote)""")
_BARE = re.compile(r"""(?<![\w./:~'"`<-])/(?:[^\s'"`/:,;()]+/)+[^\s'"`/:,;()]*""")
_PACKAGES = re.compile(r".*/(?:site|dist)-packages/")


def without_directories(text: str) -> str:
    """``text`` with absolute paths cut to their last part, or to what follows ``site-packages``."""
    if "/" not in text:
        return text
    text = _QUOTED.sub(lambda found: found["quote"] + _last(found["path"]) + found["quote"], text)
    return _BARE.sub(lambda found: _last(found[0]), text)


def _last(path: str) -> str:
    inside = _PACKAGES.sub("", path)
    return inside if inside != path else PurePath(path).name


def sentences(*texts: str) -> str:
    """The texts that are not empty, joined by spaces; a full stop is added to those that do not end a sentence."""
    return " ".join(t if t.endswith((".", "!", "?", "…")) else f"{t}." for t in texts if t)


def count(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def seeds_label(seeds: Iterable[int]) -> str:
    """``seed 1``, ``seeds 0, 2`` or ``seeds 0 to 9``."""
    numbers = list(seeds)
    return f"seed{'s' if len(numbers) != 1 else ''} {seed_list(numbers)}"


def seed_list(seeds: Iterable[int]) -> str:
    """``0, 2, 5 to 9``: four or more consecutive seeds are written as a range."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 3 else ", ".join(map(str, run)) for run in runs)


def tasks_label(tasks: tuple[str, ...]) -> str:
    """Up to three full names, or ``glue (9 tasks)`` by suite."""
    if len(tasks) <= 3:
        return one_line(", ".join(tasks))
    suites = [task.partition("/")[0] for task in tasks]
    return one_line(
        ", ".join(f"{s} ({suites.count(s)} task{'s' if suites.count(s) > 1 else ''})" for s in dict.fromkeys(suites))
    )


def memory(count: float) -> str:
    """``98 KiB``, ``4.3 MiB``, ``637 MiB`` or ``3.00 GiB``."""
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB"
    if count < 2**30:
        return f"{count / 2**20:.{1 if count < 10 * 2**20 else 0}f} MiB"
    return f"{count / 2**30:.2f} GiB"


def duration(seconds: float, *, digits: int = 1) -> str:
    """``9.2 s``, ``2 min 30 s`` or ``2 h 01 min``; ``digits`` after the point of seconds: 0 for a time that is left."""
    if seconds < 100:
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> Iterator[str]:
    """Rows of cells as lines of aligned columns: those numbered in ``left`` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()
) -> Iterator[str]:
    """Lines of a table in Markdown, its cells as they are; numbers in the columns ``right`` stand to the right."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join('---:' if at in right else '---' for at in range(len(header)))}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)

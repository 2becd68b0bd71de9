"""Published tables as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mtlbench.published.audit import audit, recomputed
from mtlbench.published.paper import Paper, PublishedTable
from mtlbench.text import aligned


def list_lines(papers: Iterable[Paper]) -> Iterator[str]:
    """Every paper with its tables."""
    for paper in papers:
        yield f"{paper.name}: {paper.title}"
        yield f"  {paper.source}"
        tables = [(table.full_name, f"{table.caption}; {', '.join(table.backbones)}") for table in paper.tables]
        yield from (f"  {line}" for line in aligned(tables, left=(0, 1)))
        yield from (f"  {paper.name}, {claim}" for claim in paper.claims)


def table_lines(table: PublishedTable) -> Iterator[str]:
    """One table, with the recomputed average next to the printed one."""
    yield f"{table.full_name}: {table.caption} ({table.unit})"
    shared = len(table.backbones) == 1
    if shared:
        yield f"backbone: {table.backbones[0]}"
    head = ["row", *([] if shared else ["backbone"]), *(column.name for column in table.columns)]
    rows = [[*head, "average", "recomputed", "our method"]]
    for row in table.rows:
        mean = recomputed(row)
        rows.append(
            [
                row.name,
                *([] if shared else [row.backbone]),
                *map(table.printed, row.values),
                table.printed(row.average),
                "-" if mean is None else f"{mean:.{table.decimals + 1}f}",
                row.method or "-",
            ]
        )
    yield from aligned(rows)
    for column in table.columns:
        if column.note:
            yield f"{column.name}: metric {column.metric}: {column.note}"
    for source in dict.fromkeys(row.copied_from for row in table.rows if row.copied_from):
        names = ", ".join(row.name for row in table.rows if row.copied_from == source)
        yield f"copied from {source}: {names}"
    yield from table.notes


def audit_lines(papers: Iterable[Paper]) -> Iterator[str]:
    """Every finding of the audit, and their number."""
    for paper in papers:
        findings = audit(paper)
        yield f"{paper.name}: {len(findings)} findings in {len(paper.tables)} tables and {len(paper.claims)} claims"
        yield from (f"  {finding}" for finding in findings)

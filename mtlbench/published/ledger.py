"""Papers and tables by name, over all installed ledgers."""

from __future__ import annotations

from pathlib import Path

from mtlbench.errors import DataError, RequestError, did_you_mean
from mtlbench.plugins import load_ledger, offers
from mtlbench.published.paper import Paper, PublishedTable
from mtlbench.published.reading import read_paper

_ROMAN = dict(zip(["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"], map(str, range(1, 11)), strict=True))


def papers() -> dict[str, Paper]:
    """Every paper of every installed ledger by name.

    Raises:
        DataError: a file does not fit the schema, or two files hold one paper.
    """
    found: dict[str, tuple[Paper, Path]] = {}
    for name in offers("published"):
        for path in sorted(load_ledger(name).folder.glob("*.json")):
            paper = read_paper(path)
            if paper.name in found:
                raise DataError(f"The paper {paper.name!r} is in {str(path)!r} and {str(found[paper.name][1])!r}.")
            found[paper.name] = (paper, path)
    return {name: paper for name, (paper, _) in sorted(found.items())}


def papers_named(words: str | None) -> dict[str, Paper]:
    """The paper ``words`` names (``peml``, or a path that ends in ``.json``), or all of them.

    Raises:
        RequestError: there is no such paper.
    """
    if words is None:
        return papers()
    if words.endswith(".json"):
        paper = read_paper(Path(words))
        return {paper.name: paper}
    known = papers()
    if words not in known:
        raise RequestError(f"No ledger holds the paper {words!r}. {did_you_mean(words, known)}")
    return {words: known[words]}


def tables_named(words: str) -> tuple[PublishedTable, ...]:
    """``peml/table-2``, or ``path/to/paper.json/table-2``; with ``ta_lora/table-1`` both of its parts.

    Roman numbers are read too: ``table-i-a`` is ``table-1-a``.

    Raises:
        RequestError: there is no such paper or table.
    """
    first, slash, name = words.rpartition("/")
    if not slash:
        raise RequestError(f"{words!r} names no table. Write paper/table, such as peml/table-2.")
    (paper,) = papers_named(first).values()
    tables = {table.name: table for table in paper.tables}
    plain = "-".join(_ROMAN.get(part, part) for part in name.lower().split("-"))
    found = [tables[it] for it in (name, plain) if it in tables][:1]
    found = found or [table for table in paper.tables if table.name.startswith(f"{plain}-")]
    if not found:
        raise RequestError(f"{paper.name} has no table {name!r}. {did_you_mean(name, tables)}")
    return tuple(found)

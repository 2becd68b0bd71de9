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
    by_name: dict[str, tuple[Paper, Path]] = {}
    for name in offers("published"):
        for path in sorted(load_ledger(name).folder.glob("*.json")):
            paper = read_paper(path)
            if paper.name in by_name:
                raise DataError(f"The paper {paper.name!r} is in {str(path)!r} and {str(by_name[paper.name][1])!r}.")
            by_name[paper.name] = (paper, path)
    return {name: paper for name, (paper, _) in sorted(by_name.items())}


def papers_named(name: str | None) -> dict[str, Paper]:
    """The paper ``name`` (``peml``, or a path that ends in ``.json``), or all of them.

    Raises:
        RequestError: there is no such paper.
    """
    if name is None:
        return papers()
    if name.endswith(".json"):
        paper = read_paper(Path(name))
        return {paper.name: paper}
    known = papers()
    if name not in known:
        raise RequestError(f"No ledger holds the paper {name!r}. {did_you_mean(name, known)}")
    return {name: known[name]}


def tables_named(reference: str) -> tuple[PublishedTable, ...]:
    """``peml/table-2``, or ``path/to/paper.json/table-2``; with ``ta_lora/table-1`` both of its parts.

    Roman numbers are read too: ``table-i-a`` is ``table-1-a``.

    Raises:
        RequestError: there is no such paper or table.
    """
    first, slash, name = reference.rpartition("/")
    if not slash:
        raise RequestError(f"{reference!r} names no table. Write paper/table, such as peml/table-2.")
    (paper,) = papers_named(first).values()
    tables = {table.name: table for table in paper.tables}
    plain = "-".join(_ROMAN.get(word, word) for word in name.lower().split("-"))
    matching = [tables[candidate] for candidate in (name, plain) if candidate in tables][:1]
    matching = matching or [table for table in paper.tables if table.name.startswith(f"{plain}-")]
    if not matching:
        raise RequestError(f"{paper.name} has no table {name!r}. {did_you_mean(name, tables)}")
    return tuple(matching)

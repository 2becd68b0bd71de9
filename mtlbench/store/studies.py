"""Searches on disk: one sealed file for each method of a study, beside the records that use its result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mtlbench.api.cell import digest
from mtlbench.api.tuning import TunedMethod
from mtlbench.errors import StoreError
from mtlbench.files.sealed import Damaged, overwrite, read_sealed, seal

SCHEMA = 1
"""Version of the layout of a search."""


def put_searches(folder: Path, searches: Iterable[TunedMethod]) -> list[Path]:
    """Write searches to ``folder``, the place for them in a run folder; gives their files."""
    paths = []
    for search in searches:
        path = folder / f"{search.study}-{digest(search.variant, length=8)}.json"
        path.parent.mkdir(exist_ok=True)
        overwrite(path, seal({"schema": SCHEMA, **search.to_json()}))
        paths.append(path)
    return paths


def read_search(path: Path) -> TunedMethod:
    """The search in a file.

    Raises:
        StoreError: there is none, or it is damaged or of a newer version.
    """
    try:
        body = read_sealed(path)
    except Damaged as error:
        raise StoreError(f"The search {path} is damaged ({error}). Run the command that made it again.") from error
    if body is None:
        raise StoreError(f"There is no search {str(path)!r}. Name the file that `mtlbench tune` wrote.")
    schema = body.pop("schema", None)
    if isinstance(schema, int) and schema > SCHEMA:
        raise StoreError(f"{path} was written by a newer version. Upgrade mtlbench.")
    try:
        return TunedMethod.from_json(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{path} is no search of mtlbench: {error}.") from error


def read_searches(folder: Path) -> tuple[list[TunedMethod], list[str]]:
    """All searches in ``folder``, and a sentence for each file that cannot be read."""
    searches, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            searches.append(read_search(path))
        except StoreError as error:
            problems.append(str(error))
    return searches, problems

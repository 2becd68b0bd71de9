"""From the word of a request to the source of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mtlbench.api.task import TaskSuite
from mtlbench.data.source import Source


def open_source(words: str, *, suites: Mapping[str, TaskSuite]) -> Source:
    """The source named ``demo`` or ``hub``, or the folder at the path ``words``.

    Raises:
        DataError: there is no such folder.
    """
    if words == "demo":
        from mtlbench.data.demo import DemoSource

        return DemoSource(suites)
    if words == "hub":
        from mtlbench.data.hub import HubSource

        return HubSource()
    from mtlbench.data.folder import FolderSource

    return FolderSource(Path(words))

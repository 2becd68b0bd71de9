"""From the value of ``--data`` to a source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mtlbench.api.task import TaskSuite
from mtlbench.data.source import Source


def open_source(data: str, *, suites: Mapping[str, TaskSuite]) -> Source:
    """The source ``demo`` or ``hub``, or the folder at the path ``data``.

    Raises:
        DataError: the folder does not exist.
    """
    if data == "demo":
        from mtlbench.data.demo import DemoSource

        return DemoSource(suites)
    if data == "hub":
        from mtlbench.data.hub import HubSource

        return HubSource()
    from mtlbench.data.folder import FolderSource

    return FolderSource(Path(data))

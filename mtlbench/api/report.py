"""The contract of a report: a pure function from a study to documents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from mtlbench.api.study import Study


class Report(ABC):
    """Renders a study. Never imports torch, never reads the run folder, never writes a file."""

    name: ClassVar[str]
    on_terminal: ClassVar[bool] = False
    """Whether the command line also prints the first document."""

    @abstractmethod
    def render(self, study: Study) -> Mapping[str, str | bytes]:
        """File name to content, such as ``{"report.md": "..."}``; the command line writes them."""

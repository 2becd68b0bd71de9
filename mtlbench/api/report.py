"""The contracts of a report, a pure function from a study to documents, and of a ledger of published tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mtlbench.api.study import Study


class Report(ABC):
    """Renders a study. Never imports torch, never reads the run folder, never writes a file."""

    name: ClassVar[str]
    on_terminal: ClassVar[bool] = False
    """Whether the command line also prints the first document."""

    @abstractmethod
    def render(self, study: Study) -> Mapping[str, str | bytes]:
        """File name to content, such as ``{"report.md": "..."}``; the command line writes them."""

    def figures(self, study: Study) -> Mapping[str, Figure]:
        """Charts by name as figures of matplotlib, which notebooks show; a report without charts has none."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A folder of published tables, one JSON file per paper; docs/published.md describes the format."""

    name: str
    folder: Path
